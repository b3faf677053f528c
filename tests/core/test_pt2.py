"""The torch.export form: read back by torch alone, equal and equally cheap, and refused where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest
import torch

import autorep_fx
from autorep_fx.errors import OutputError, ParityError, PlanError
from autorep_fx.export.verify import verify
from autorep_fx.runtime import Session
from nets import TinyNet, batches, trained_norms

X = batches()[0][0]


@pytest.fixture(scope="module")
def compiled() -> autorep_fx.Compiled:
    """TinyNet at 10 %, compiled without training."""
    torch.manual_seed(0)
    return autorep_fx.transform(trained_norms(TinyNet(), X), "10%", example_inputs=X)


def test_torch_alone_runs_it_at_any_batch(compiled: autorep_fx.Compiled, tmp_path: Path) -> None:
    """In a process without this package; the outputs are those of the module."""
    result = compiled.export_torch(tmp_path / "model.pt2")
    assert (result.comparisons, result.batches) == (52, (1, 2, 3, 7))
    assert result.largest_difference < 1e-6
    torch.save((X[:5], compiled(X[:5])), tmp_path / "case.pt")
    code = (
        "import sys, torch\n"
        "x, y = torch.load('case.pt')\n"
        "module = torch.export.load('model.pt2').module()\n"
        "assert torch.allclose(module(x), y, atol=1e-6) and module(x[:1]).shape == (1, 4)\n"
        "assert 'autorep_fx' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_says_what_it_is_and_not_where_it_was_made(compiled: autorep_fx.Compiled, tmp_path: Path) -> None:
    """Digest of the plan and comparisons in an extra file; no path of a source file anywhere."""
    compiled.export_torch(tmp_path / "model.pt2")
    extra = {"autorep_fx.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    found = json.loads(extra["autorep_fx.json"])
    assert (found["plan_digest"], found["comparisons"]) == (compiled.plan.digest, 52)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for text in (b"stack_trace", b"site-packages", str(Path.cwd()).encode()):
        assert text not in content


def test_it_is_saved_and_checked_with_the_rest(tmp_path: Path) -> None:
    """On request; its digest is in the plan, and a result without it clears an earlier one."""
    torch.manual_seed(0)
    config = {"outputs": {"pt2": True, "onnx": False, "report": False}}
    compiled = autorep_fx.transform(TinyNet().eval(), "10%", example_inputs=X, config=config, out_dir=tmp_path)
    assert "model.pt2" in json.loads((tmp_path / "plan.json").read_text())["files"]
    assert torch.equal(autorep_fx.load(tmp_path, TinyNet(), example_inputs=X).module(X), compiled(X))
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(PlanError, match=r"model\.pt2: damaged"):
        autorep_fx.load(tmp_path, TinyNet(), example_inputs=X)


def test_other_endings_and_failures_leave_nothing(
    compiled: autorep_fx.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that torch would warn of; a folder that is missing; outputs that differ."""
    with pytest.raises(OutputError, match=r"is a \.pt2 file[\s\S]*model\.pt2"):
        compiled.export_torch(tmp_path / "model.pt")
    with pytest.raises(OutputError):
        compiled.export_torch(tmp_path / "missing" / "model.pt2")
    monkeypatch.setattr("autorep_fx.export.torch_export._TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(ParityError, match="at batch 7 outputs differ"):
        compiled.export_torch(tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_float16_for_gpus(tmp_path: Path) -> None:
    """Half of the weights' bytes, float16 in and out, equal to the float32 module up to float16; recounted."""
    torch.manual_seed(0)
    model = trained_norms(TinyNet(), X)
    compiled = autorep_fx.transform(model, "10%", example_inputs=X, config={"export": {"dtype": "float16"}})
    compiled.export(tmp_path / "half.onnx")
    assert verify(tmp_path / "half.onnx").comparisons == 52
    graph = onnx.load(tmp_path / "half.onnx").graph
    weights = [t for t in graph.initializer if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)]
    assert {t.data_type for t in weights if onnx.numpy_helper.to_array(t).size > 1} == {onnx.TensorProto.FLOAT16}
    session = Session(tmp_path / "half.onnx", device="cpu")
    assert str(session.types["x"]) == "float16"
    outputs, expected = torch.from_numpy(session(X.half().numpy())), compiled(X).detach()
    assert outputs.dtype == torch.float16
    assert float((outputs.float() - expected).abs().max() / expected.abs().max()) < 1e-2
    assert expected.dtype == torch.float32  # the module itself is not cast
    [bound] = session.run_torch(X.half())
    assert torch.equal(bound, outputs)


def test_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    """Values above 65,504 in between: no file, and the reason."""
    torch.manual_seed(0)
    model = trained_norms(TinyNet(), X)
    with torch.no_grad():
        model.conv1.weight.mul_(1e-3)  # type: ignore[operator,union-attr]
        model.bn1.running_var.fill_(1e-12)  # type: ignore[operator,union-attr]
        model.bn1.weight.fill_(3e5)  # type: ignore[operator,union-attr]
        model.fc1.weight.mul_(1e-6)  # type: ignore[operator,union-attr]
    compiled = autorep_fx.transform(model, "100%", example_inputs=X, config={"export": {"dtype": "float16"}})
    with pytest.raises(ParityError, match=r"range of float16[\s\S]*dtype: float32"):
        compiled.export(tmp_path / "half.onnx")
    assert list(tmp_path.iterdir()) == []
