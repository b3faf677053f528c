"""What must not pass quietly: each of these models once gave a wrong result, a wrong count, or a wrong reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import ConfigError, DataError, ModelFileError, UnsupportedModelError
from nets import Call
from onnx_models import save

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
V = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def test_complex_weights_survive_a_refused_export(tmp_path: Path) -> None:
    """ONNX has no complex numbers; the module keeps the imaginary parts."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(F.relu(m.linear(x))) * m.weight, n=8)

    model = Call(forward, linear=nn.Linear(8, 8)).eval()
    model.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64))
    compiled = autorep_fx.transform(model, "100%", example_inputs=V)
    with pytest.raises(UnsupportedModelError, match=r"fft_rfft .* makes complex numbers"):
        compiled.export(tmp_path / "m.onnx")
    torch.testing.assert_close(compiled(V), model(V), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("random", "name"), [(lambda x: F.dropout(x, 0.5), "dropout"), (lambda x: x + torch.randn_like(x), "randn_like")]
)
def test_randomness_in_eval_mode_is_an_obstacle(random: Any, name: str) -> None:
    """It makes every comparison of outputs void."""
    model = Call(lambda m, x: F.relu(m.linear(random(x))), linear=nn.Linear(8, 8)).eval()
    with pytest.raises(UnsupportedModelError, match=rf"{name} \(.*draws random numbers in eval"):
        autorep_fx.inspect(model, V)


def test_randomness_in_training_alone_is_none() -> None:
    """Dropout, also inside attention, and layers of one's own that draw in training."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.drop(F.relu(m.linear(x)))
        x = x + m.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return x * torch.rand_like(x) if m.training else x

    parts = {"linear": nn.Linear(8, 8), "attention": nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)}
    assert autorep_fx.inspect(Call(forward, drop=nn.Dropout(0.3), **parts).eval(), V).gateable == 8


def test_numbers_and_flags_of_the_example_hold_for_it_alone() -> None:
    """They are written into the graph: another value is refused."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, scale: float, flag: bool = True) -> Tensor:
            return F.relu(self.linear(x)) * scale if flag else x

    model = Scaled().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (V, 3.0, True), dynamic_shapes=({0: batch}, None, None))
    for given in (model, program):
        compiled = autorep_fx.transform(given, "100%", example_inputs=(V, 3.0, True))
        torch.testing.assert_close(compiled(V, 3.0, True), model(V, 3.0, True))
        for args in ((V, 5.0, True), (V, 3.0, False)):
            with pytest.raises(DataError, match="no tensors were captured with the values of the example"):
                compiled(*args)


def test_free_axes_of_a_foreign_file_are_not_taken_for_1(tmp_path: Path) -> None:
    """Only the batch may be free."""
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    shape: list[Any] = ["batch", 3, "height", "width"]
    path = save(tmp_path / "m.onnx", [node], {"x": ("float32", shape)}, {"y": ("float32", shape)})
    with pytest.raises(ModelFileError, match=r"x, axis 2 \(height\); x, axis 3 \(width\)"):
        autorep_fx.count_comparisons(path)


def test_max_pool1d_with_indices_compares(tmp_path: Path) -> None:
    """As the pool without."""
    model = Call(
        lambda m, x: F.max_pool1d(F.relu(m.conv(x.flatten(2))), 2, return_indices=True)[0], conv=nn.Conv1d(3, 4, 1)
    )
    compiled = autorep_fx.transform(model.eval(), "50%", example_inputs=X)
    assert compiled.plan.fixed_comparisons == 4 * 32
    assert compiled.export(tmp_path / "m.onnx").comparisons == 128 + 128


def test_the_example_is_not_written_to() -> None:
    """Although the model writes to its input."""
    x = V.clone()
    autorep_fx.inspect(Call(lambda m, x: F.relu(m.linear(x.mul_(2))), linear=nn.Linear(8, 8)), x)
    assert torch.equal(x, V)


def test_an_average_with_a_divisor_of_its_own(tmp_path: Path) -> None:
    """Lowered as it is, not by the rules of averages; ONNX has no such operation."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(m.one(x)), 2, divisor_override=1)
        return m.head(F.relu(m.two(x)).mean((2, 3)))

    model = Call(forward, one=nn.Conv2d(3, 8, 3), two=nn.Conv2d(8, 8, 3), head=nn.Linear(8, 3)).eval()
    compiled = autorep_fx.transform(model, "0", example_inputs=X)
    assert not any("lowered without" in text for text in compiled.lowering_notes)
    with pytest.raises(UnsupportedModelError, match="divisor_override"):
        compiled.export(tmp_path / "m.onnx")


def _pooled(*, zeros: bool) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.relu(m.two(F.max_pool2d(F.relu(m.one(x)), 2))).mean((2, 3)))

    parts = {"one": nn.Conv2d(3, 8, 3, padding=1), "two": nn.Conv2d(8, 4, 3, padding=1), "head": nn.Linear(4, 3)}
    if zeros:
        nn.init.zeros_(parts["two"].weight[:, :4].detach())
    return Call(forward, **parts).eval()


def test_channels_that_a_fixed_site_compares_are_not_dropped() -> None:
    """A pruned network: nothing reads half of what the max pool compares, and the plan counts it."""
    compiled = autorep_fx.transform(_pooled(zeros=True), "40%", example_inputs=X)
    assert compiled.comparisons == compiled.plan.comparisons == (512 + 64) * 4 // 10 + 8 * 16 * 3


def test_a_fixed_site_behind_constants_is_told() -> None:
    """Nothing reaches the max pool, so that the plan could not hold."""
    with pytest.raises(ConfigError, match="max_pool2d behind polynomials of degree 0"):
        autorep_fx.transform(_pooled(zeros=False), "0%", example_inputs=X, config={"polynomials": {"degree": 0}})


def test_a_traced_module_with_a_dict_of_outputs() -> None:
    """torch.fx makes an immutable one of it, with the same content."""
    model = torch.fx.symbolic_trace(Call(lambda m, x: {"out": [F.relu(m.linear(x))]}, linear=nn.Linear(8, 8)).eval())
    compiled = autorep_fx.transform(model, "100%", example_inputs=V)
    torch.testing.assert_close(compiled(V)["out"][0], model(V)["out"][0])


def test_what_cannot_be_exported_is_a_warning_of_the_result() -> None:
    """Of a model that is compiled in Python alone, too."""
    model = Call(lambda m, x: F.relu(m.linear(x)) - x.mean(0), linear=nn.Linear(8, 8)).eval()
    [warning] = autorep_fx.transform(model, "100%", example_inputs=V).warnings
    assert warning.startswith("it cannot be exported to ONNX: outputs of one sample depend on the other samples")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_scripted_parts_and_layers_behind_a_branch_are_listed() -> None:
    """Each by its name, although capture stops at the first obstacle."""
    part = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    with pytest.raises(UnsupportedModelError, match="part: a scripted or traced module") as caught:
        autorep_fx.inspect(Call(lambda m, x: m.part(x), part=part), V)
    assert "1 obstacle." in str(caught.value)

    def branching(m: Any, x: Tensor) -> Tensor:
        y = m.linear(x)
        return F.relu(y) if y.sum() > 0 else m.recurrent(y[:, None])[0]

    model = Call(branching, linear=nn.Linear(8, 8), recurrent=nn.GRU(8, 8, batch_first=True)).eval()
    with pytest.raises(UnsupportedModelError, match=r"2 obstacles[\s\S]*branches on[\s\S]*recurrent \(GRU\) compares"):
        autorep_fx.inspect(model, V)


def _twice(m: Any, x: Tensor) -> Tensor:
    y = m.linear(x)
    y[:, 2:].mul_(2).sigmoid_()
    return y


def _twice_by_name(m: Any, x: Tensor) -> Tensor:
    y = m.linear(x)
    part = y[:, 2:][:, 1:4]
    part += 1
    part.tanh_()
    return torch.cat([y, part], 1)


@pytest.mark.parametrize("function", [_twice, _twice_by_name])
def test_every_write_to_a_slice_reaches_the_whole(function: Any) -> None:
    """The second as well as the first."""
    model = Call(function, linear=nn.Linear(8, 8)).eval()
    compiled = autorep_fx.transform(model, "100%", example_inputs=V)
    torch.testing.assert_close(compiled(V), model(V), rtol=0, atol=1e-6)
    assert len(compiled.sites) == 1


def test_labels_and_masks_may_be_constant(tmp_path: Path) -> None:
    """On noise one class may always win; a network whose every number is constant is still refused."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.head(F.relu(m.linear(x)))
        return y, y.argmax(1), torch.ones_like(y[:, :1])

    model = Call(forward, linear=nn.Linear(8, 8), head=nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model.head.bias[0] = 9.0  # type: ignore[index,union-attr]
    autorep_fx.transform(model, "50%", example_inputs=V).export(tmp_path / "m.onnx")
