"""Weights that one file cannot hold go beside it; and lowering and export keep no copies that they do not need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import ModelFileError, OutputError, ParityError, PlanError
from autorep_fx.export.verify import verify
from autorep_fx.runtime import Session
from autorep_fx.stages import calibrate, lower, prepare, project

_CONFIG = {"outputs": {"report": False}}


class Wide(nn.Module):
    """1.2 MB of weights, of which the second layer alone is 1 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 512), nn.Linear(512, 512), nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


@pytest.fixture(scope="module")
def compiled() -> autorep_fx.Compiled:
    """Compiled without training."""
    torch.manual_seed(0)
    return autorep_fx.transform(Wide(), "10%", example_inputs=torch.randn(8, 64), config=_CONFIG)


@pytest.fixture
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autorep_fx.export.write._EXTERNAL_ABOVE", 1_000_000)


@pytest.mark.usefixtures("_beside")
def test_weights_go_beside(compiled: autorep_fx.Compiled, tmp_path: Path) -> None:
    """Two files, a relative location; verified, counted and run; and wherever both are moved together."""
    compiled.export(tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx.data").stat().st_size > 1_000_000 > (tmp_path / "model.onnx").stat().st_size
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {entry.value for t in external for entry in t.external_data if entry.key == "location"} == {
        "model.onnx.data"
    }
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    path = moved / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    assert verify(path).comparisons == compiled.comparisons == autorep_fx.count_comparisons(path)
    x = torch.randn(3, 64)
    expected = compiled(x).detach().numpy()
    np.testing.assert_allclose(Session(path, device="cpu")(x.numpy()), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("_beside")
def test_saved_and_loaded(compiled: autorep_fx.Compiled, tmp_path: Path) -> None:
    """The digest of the data is checked; a missing file is named; a smaller result clears what is no more needed."""
    folder = compiled.save(tmp_path / "saved")
    x = torch.randn(3, 64)
    expected = compiled(x).detach().numpy()
    np.testing.assert_allclose(autorep_fx.load(folder)(x.numpy()), expected, rtol=0, atol=1e-5)
    digests = json.loads((folder / "plan.json").read_text())["files"]
    checked = Session(folder / "model.onnx", device="cpu", sha256=digests)
    np.testing.assert_allclose(checked(x.numpy()), expected, rtol=0, atol=1e-5)
    loaded = autorep_fx.load(folder, Wide())
    assert torch.equal(loaded.module(x), compiled(x))
    data = folder / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-5] ^= 1
    data.write_bytes(content)
    with pytest.raises(PlanError, match=r"model\.onnx\.data: damaged"):
        autorep_fx.load(folder)
    data.unlink()
    with pytest.raises(ModelFileError):
        autorep_fx.load(folder)
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data"):
        verify(folder / "model.onnx")
    with pytest.MonkeyPatch.context() as patch:
        compiled.save(folder)
        patch.setattr("autorep_fx.export.write._EXTERNAL_ABOVE", 10**9)
        compiled.save(folder)
    assert not data.exists()
    autorep_fx.load(folder)


@pytest.mark.usefixtures("_beside")
def test_a_failure_leaves_what_was_there(
    compiled: autorep_fx.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed parity touches nothing; where the data cannot be put in place, there is no model that lacks it."""
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autorep_fx.export.verify.TOLERANCE", {"float32": -1.0})
        with pytest.raises(ParityError):
            compiled.export(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"earlier"
    (tmp_path / "model.onnx.data").mkdir()
    with pytest.raises(OutputError, match=r"model\.onnx\.data"):
        compiled.export(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"earlier"
    (tmp_path / "model.onnx.data").rmdir()
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name == "model.onnx":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        compiled.export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_single_file_is_what_onnx_would_write(compiled: autorep_fx.Compiled, tmp_path: Path) -> None:
    """Written part by part, it parses to a model with all weights and values, and survives being written again."""
    compiled.export(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(tmp_path / "model.onnx")
    [weight] = [t for t in model.graph.initializer if 512 * 512 in (np.prod(t.dims),)]
    values = onnx.numpy_helper.to_array(weight)
    [own] = [t.numpy() for t in compiled.module.state_dict().values() if t.shape == (512, 512)]
    assert np.array_equal(values, own) or np.array_equal(values, own.T)
    onnx.save(model, tmp_path / "again.onnx")
    assert verify(tmp_path / "again.onnx").largest_difference == verify(tmp_path / "model.onnx").largest_difference


def test_counting_keeps_no_large_weights(compiled: autorep_fx.Compiled, tmp_path: Path) -> None:
    """What is loaded for counting lacks the values of large weights, in one file or two."""
    from autorep_fx.cost.onnx_count import load_model

    compiled.export(tmp_path / "model.onnx")
    assert load_model(tmp_path / "model.onnx").ByteSize() < 300_000


def test_lowering_copies_only_what_it_must() -> None:
    """Weights that lowering leaves alone are shared with the saved ones; a consumed model's are taken over."""
    gated = prepare(Wide(), "100%", example_inputs=torch.randn(8, 64))
    calibrate(gated, gated.example)
    project(gated)
    own = dict(gated.network.named_parameters())["fc2.weight"].data_ptr()
    for consume, same in ((False, False), (True, True)):
        compiled = lower(gated, consume=consume)
        places = {
            compiled.weights["fc2.weight"].data_ptr(),
            dict(compiled.module.named_parameters())["fc2.weight"].data_ptr(),
        }
        assert len(places) == 1
        assert (own in places) is same


def test_export_leaves_the_module_as_it_is(compiled: autorep_fx.Compiled, tmp_path: Path) -> None:
    """The export shares tensors with the module, unless it casts them."""
    before = {name: (value.data_ptr(), value.dtype) for name, value in compiled.module.state_dict().items()}
    compiled.export(tmp_path / "model.onnx")
    module = compiled.module
    from autorep_fx.export.onnx_export import export_onnx

    export_onnx(module, compiled.example, tmp_path / "half.onnx", plan=compiled.plan, dtype="float16")
    assert {name: (value.data_ptr(), value.dtype) for name, value in module.state_dict().items()} == before
