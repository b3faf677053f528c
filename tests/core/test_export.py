"""Export: metadata, parity as a gate, no source paths, and a file that can be verified on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import DataError, DeviceError, ModelFileError, OutputError, ParityError, UnsupportedModelError
from autorep_fx.export.verify import BATCHES, verify
from autorep_fx.runtime import Session
from nets import TinyNet, batches, trained_norms


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, autorep_fx.Compiled]:
    """TinyNet at 10 %, compiled without training."""
    torch.manual_seed(0)
    compiled = autorep_fx.transform(trained_norms(TinyNet(), batches()[0][0]), "10%", example_inputs=batches()[0][0])
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    compiled.export(path)
    return path, compiled


def test_metadata_say_what_the_file_is(exported: tuple[Path, autorep_fx.Compiled]) -> None:
    """Plan digest, budget, comparisons in total and by site, versions."""
    path, compiled = exported
    found = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert found["autorep_fx.plan_digest"] == compiled.plan.digest
    assert json.loads(found["autorep_fx.budget"]) == {"fraction": 0.1}
    assert int(found["autorep_fx.comparisons"]) == 52
    assert sum(json.loads(found["autorep_fx.comparisons_by_site"]).values()) == 52
    assert "torch" in json.loads(found["autorep_fx.versions"])


def test_no_source_path_is_in_the_file(exported: tuple[Path, autorep_fx.Compiled]) -> None:
    """No file name, folder or stack trace of the machine that exported it."""
    content = exported[0].read_bytes()
    for text in (b".py", b"stack_trace", b"site-packages", str(Path.cwd()).encode()):
        assert text not in content


def test_the_batch_is_dynamic_and_the_opset_is_as_stated(exported: tuple[Path, autorep_fx.Compiled]) -> None:
    """Input and output have a named batch axis; only standard operators are used."""
    model = onnx.load(exported[0])
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    onnx.checker.check_model(model, full_check=True)


def test_verify_repeats_parity_and_recounts(exported: tuple[Path, autorep_fx.Compiled]) -> None:
    """From the file alone."""
    result = verify(exported[0])
    assert (result.comparisons, result.batches) == (52, BATCHES)
    assert result.largest_difference < 1e-5


def _tampered(exported: tuple[Path, autorep_fx.Compiled], tmp_path: Path, change: object) -> Path:
    model = onnx.load(exported[0])
    change(model)  # type: ignore[operator]
    onnx.save(model, tmp_path / "tampered.onnx")
    return tmp_path / "tampered.onnx"


def _weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))


def _constant(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.FLOAT and not (value == 1).all():  # not the variances
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(value), tensor.name))


def _nan(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32("nan"), tensor.name))


def _count(model: onnx.ModelProto) -> None:
    next(p for p in model.metadata_props if p.key == "autorep_fx.comparisons").value = "51"


@pytest.mark.parametrize(
    ("change", "text"),
    [(_weight, "outputs differ"), (_constant, "constant"), (_nan, "not finite"), (_count, "52 comparisons.*say 51")],
)  # fmt: skip
def test_verify_finds_what_was_changed(
    exported: tuple[Path, autorep_fx.Compiled], tmp_path: Path, change: object, text: str
) -> None:
    """A weight off by 1 %, constant outputs, NaN outputs, a wrong count: each fails with its reason."""
    with pytest.raises(ParityError, match=text):
        verify(_tampered(exported, tmp_path, change))


def test_verify_refuses_files_that_are_not_its_own(tmp_path: Path) -> None:
    """A missing file, a damaged one, and an ONNX file of another origin."""
    with pytest.raises(ModelFileError, match="no model file"):
        verify(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(ModelFileError, match="not a valid ONNX"):
        verify(tmp_path / "bad.onnx")
    x = onnx.helper.make_tensor_value_info("x", 1, [1, 2])
    y = onnx.helper.make_tensor_value_info("y", 1, [1, 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "foreign.onnx")
    with pytest.raises(ModelFileError, match="does not carry"):
        verify(tmp_path / "foreign.onnx")
    assert autorep_fx.count_comparisons(tmp_path / "foreign.onnx") == 2


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """A model with constant outputs fails its verification, and no file, not even a temporary one, is left."""
    model = TinyNet().eval()
    with torch.no_grad():
        model.fc2.weight.zero_()
        model.fc2.bias.fill_(1.0)
    compiled = autorep_fx.transform(model, "10%", example_inputs=torch.randn(4, 1, 8, 8))
    with pytest.raises(UnsupportedModelError, match="constant"):
        compiled.export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError):
        compiled.export(tmp_path / "missing" / "model.onnx")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_float_types_are_cast_with_a_message(
    tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """The CPU of onnxruntime lacks their convolutions: the file is float32, and a message says so."""
    model = trained_norms(TinyNet(), batches()[0][0]).to(dtype)
    compiled = autorep_fx.transform(model, "10%", example_inputs=batches()[0][0].to(dtype))
    compiled.export(tmp_path / "model.onnx")
    assert "made in float32" in caplog.text
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_several_inputs_and_nested_outputs(tmp_path: Path) -> None:
    """Two inputs and a dict of tuples go through export, parity and the session by name."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, object]:
            h = torch.relu(self.a(left)) + torch.relu(self.b(right))
            return {"sum": h, "parts": (h[:, :1], h * 2)}

    example = {"left": torch.randn(4, 3), "right": torch.randn(4, 5)}
    compiled = autorep_fx.transform(Two(), "50%", example_inputs=example)
    compiled.export(tmp_path / "model.onnx")
    outputs = Session(tmp_path / "model.onnx", device="cpu").run(
        left=example["left"].numpy(), right=example["right"].numpy()
    )
    expected = compiled.module(**example)
    np.testing.assert_allclose(outputs[0], expected["sum"].detach().numpy(), atol=1e-6, rtol=0)
    assert len(outputs) == 3


def test_session_says_what_it_expected(exported: tuple[Path, autorep_fx.Compiled]) -> None:
    """Shape, type, missing and unknown inputs; all at once."""
    session = Session(exported[0], device="cpu")
    assert session.device == "cpu"
    [name] = session.inputs
    assert session.run(np.zeros((3, 1, 8, 8), np.float32))[0].shape == (3, 4)
    assert session(np.zeros((0, 1, 8, 8), np.float32)).shape == (0, 4)
    with pytest.raises(DataError, match=r"shape \(1, 9, 8\)[\s\S]*is float64, expected float32[\s\S]*To fix: Pass"):
        session(np.zeros((1, 9, 8)))
    with pytest.raises(DataError, match=f"{name!r} is missing[\\s\\S]*no input 'other'"):
        session(other=np.zeros((1, 1, 8, 8), np.float32))


def test_session_refuses_cuda_that_is_not_there(exported: tuple[Path, autorep_fx.Compiled]) -> None:
    """Asked for cuda and not got: an error with the remedy; auto goes on and says where it runs."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceError, match="does not run on CUDA"):
        Session(exported[0], device="cuda")
    assert Session(exported[0], device="auto").device == "cpu"
    with pytest.raises(DeviceError, match="no such device"):
        Session(exported[0], device="gpu")  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="no model file"):
        Session(exported[0].with_name("none.onnx"))


def test_two_onnxruntime_builds_are_named(
    exported: tuple[Path, autorep_fx.Compiled], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both builds installed: a warning on the CPU, an error where CUDA was asked for."""
    monkeypatch.setattr("autorep_fx.runtime.providers.version", lambda package: "1.0")
    Session(exported[0], device="cpu")
    assert "onnxruntime 1.0, onnxruntime-gpu 1.0" in caplog.text
    with pytest.raises(DeviceError, match="over each other"):
        Session(exported[0], device="cuda")


def test_outputs_are_named_after_their_keys_and_the_batch_is_called_batch(tmp_path: Path) -> None:
    """Names that survive edits of the model, for onnxruntime's users."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> dict[str, object]:
            h = torch.relu(self.fc(x))
            return {"map": h, "parts": (h[:, :1], h * 2)}

    compiled = autorep_fx.transform(Named(), "50%", example_inputs=torch.randn(4, 3))
    compiled.export(tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", device="cpu")
    assert session.outputs == ("map", "parts_0", "parts_1")
    assert session.inputs == {"x": ("batch", 3)}
    assert repr(session) == "Session(x (batch, 3) → map, parts_0, parts_1, on cpu)"


def test_results_print_as_a_few_lines(exported: tuple[Path, autorep_fx.Compiled]) -> None:
    """Repr of a result, a plan and a cost are readable summaries, not dumps of tensors."""
    compiled = exported[1]
    for value in (compiled, compiled.plan):
        assert len(repr(value).splitlines()) < 12
        assert "524 → 52" in repr(value)
    assert str(compiled.cost()).splitlines()[-1].split()[0] == "52"
    assert any("differ from the model's by" in note for note in compiled.notes)


@pytest.mark.parametrize("pad", [lambda x: F.pad(x, (1, 1, 1, 1)), nn.ConstantPad2d(1, 0.0)], ids=["F.pad", "module"])
def test_zeros_that_are_padded_before_a_max_pooling_stay_zeros(pad: Any, tmp_path: Path) -> None:
    """Where a window holds negative values and padding, the maximum is 0; an optimiser made it the largest value."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.max_pool2d(pad(self.conv(x)), 3, 2) + 1)

    torch.manual_seed(0)
    model = Pooled().eval()
    with torch.no_grad():
        model.conv.bias.fill_(-9.0)  # type: ignore[union-attr]
    x = torch.randn(4, 3, 8, 8)
    compiled = autorep_fx.transform(model, "100%", example_inputs=x)
    compiled.export(tmp_path / "model.onnx")  # raised a ParityError at optimiser on
    found = autorep_fx.runtime.Session(tmp_path / "model.onnx")(x.numpy())
    assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-5)
    assert bool((model(x)[:, :, 0] == 1).all())
    settings = {"export": {"dtype": "float16"}}
    autorep_fx.transform(model, "100%", example_inputs=x, config=settings).export(tmp_path / "half.onnx")


class Chaos(nn.Module):
    """A network whose last steps double every difference forty times: 4·x·(1 − x) on (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.head(self.relu(self.conv(x))))
        for _ in range(40):
            x = 4 * x * (1 - x)
        return x


def test_a_model_that_amplifies_rounding_is_named(tmp_path: Path) -> None:
    """No runtime can agree with another on it: that is told, not a defect of the export; and nothing is written."""
    torch.manual_seed(0)
    compiled = autorep_fx.transform(Chaos(), "50%", example_inputs=torch.randn(4, 3, 8, 8))
    with pytest.raises(UnsupportedModelError, match=r"rounding decides its outputs: .* those in float32 differ"):
        compiled.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
