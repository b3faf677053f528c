"""Models that cannot be compiled end in one typed error that names the cause; what looks alike and can be, compiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import AutorepError, ConfigError, DataError, UnsupportedModelError

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A linear layer and what a test adds; computes what the test says."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def _export(model: nn.Module, x: Any, path: Path, budget: Any = "50%") -> autorep_fx.Compiled:
    compiled = autorep_fx.transform(model.eval(), budget, example_inputs=x)
    compiled.export(path / "m.onnx")  # verifies parity and counts
    return compiled


def _refused(model: nn.Module, x: Any, kind: type[AutorepError] = UnsupportedModelError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        autorep_fx.transform(model.eval(), "50%", example_inputs=x, **options)
    return str(caught.value)


# A batch of 1, which capture itself never sees.


def by_size(m: Any, x: Tensor) -> Tensor:
    h = F.relu(m.a(x))
    return m.a(h) if x.shape[0] > 1 else m.a(h) * 2


def squeezed(m: Any, x: Tensor) -> Tensor:
    return m.head(F.adaptive_avg_pool2d(F.relu(m.conv(x)), 1).squeeze())[..., :2]


def test_a_branch_on_a_batch_of_1_is_refused() -> None:
    assert "at a batch of 1 the model computes something else" in _refused(Net(by_size), X)
    fixed = {"capture": {"dynamic_batch": False}}
    assert autorep_fx.transform(Net(by_size).eval(), "50%", example_inputs=X, config=fixed).comparisons == 4


def test_squeeze_without_axes_is_named(tmp_path: Path) -> None:
    parts = {"conv": nn.Conv2d(3, 4, 3), "head": nn.Linear(4, 3)}
    assert "squeeze() (" in _refused(Net(squeezed, **parts), IMAGES)

    def whole(m: Any, x: Tensor) -> Tensor:
        return m.head(F.adaptive_avg_pool2d(F.relu(m.conv(x)), 1).squeeze())

    compiled = autorep_fx.transform(Net(whole, **parts).eval(), "50%", example_inputs=IMAGES)
    with pytest.raises(UnsupportedModelError, match=r"squeeze\(\) .* takes the batch axis away"):
        compiled.export(tmp_path / "m.onnx")


# Weights and names.


def chained(m: Any, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x)))


def test_weights_without_values_are_refused() -> None:
    assert "b.weight: its module was never called" in _refused(Net(chained, b=nn.LazyLinear(3)), X)
    assert "a.weight and 3 more" in _refused(Net(chained, b=nn.Linear(8, 8)).to("meta"), X)
    assert "meta device" in _refused(Net(chained, b=nn.Linear(8, 8)), X.to("meta"), DataError)


@pytest.mark.parametrize("name", ["sizes", "fixed_batch", "recompile", "graph", "to_folder"])
def test_names_of_the_captured_module_are_refused(name: str) -> None:
    text = _refused(Net(lambda m, x: getattr(m, name)(F.relu(m.a(x))), **{name: nn.Linear(8, 8)}), X)
    assert f"the attribute {name!r} has a name that a captured graph uses for itself" in text


def test_keywords_as_names_are_refused() -> None:
    parts = nn.ModuleDict({"class": nn.Linear(8, 8), "fine": nn.Linear(8, 8)})
    assert "'class' is a keyword of Python" in _refused(Net(lambda m, x: m.d["class"](F.relu(m.a(x))), d=parts), X)


# Calls and inputs.


def test_vmap_is_refused() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: F.relu(row) * row.sum())(m.a(x))

    assert "torch.vmap (" in _refused(Net(function), X)


def test_random_numbers_hide_no_other_obstacle() -> None:
    text = _refused(Net(lambda m, x: (F.relu(m.a(x)) + torch.rand_like(x)).cummax(1).values), X)
    assert "2 obstacles" in text and "rand_like" in text and "cummax" in text


def test_free_keywords_are_refused() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, **given: Tensor) -> Tensor:
            return F.relu(self.a(given["x"]))

    assert "forward takes x by **given" in _refused(Free(), {"x": X})


def test_a_batch_that_other_inputs_fix_names_the_setting(tmp_path: Path) -> None:
    def function(m: Any, x: Tensor, table: Tensor) -> Tensor:
        return m.a(F.relu(m.a(x)) @ table)

    inputs = (torch.randn(8, 8), torch.randn(8, 8))
    text = _refused(Net(function), inputs)
    assert "its code fixes the batch to 8" in text and "batch_dims" in text
    config = {"capture": {"batch_dims": {"1": None}}}
    assert autorep_fx.transform(Net(function).eval(), "50%", example_inputs=inputs, config=config).comparisons == 4
    nothing = {"capture": {"batch_dims": {"0": None}}}
    assert "leaves no input with a batch" in _refused(Net(chained, b=nn.Linear(8, 8)), X, ConfigError, config=nothing)


@dataclass
class Pair:
    """Two inputs, of which one may be missing."""

    value: Tensor
    mask: Tensor | None = None


@pytest.mark.parametrize("mask", [None, torch.ones(5, 8)])
def test_dataclasses_are_inputs(mask: Tensor | None, tmp_path: Path) -> None:
    def function(m: Any, pair: Pair) -> Tensor:
        return F.relu(m.a(pair.value if pair.mask is None else pair.value * pair.mask))

    assert _export(Net(function), (Pair(X, mask),), tmp_path).comparisons == 4


# What compiles.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_of_another_precision_are_exported(dtype: torch.dtype, tmp_path: Path) -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        return m.b(F.relu(m.a(x)).to(dtype)).float()

    assert _export(Net(function, b=nn.Linear(8, 8).to(dtype)), X, tmp_path).comparisons == 4


@pytest.mark.parametrize(
    "function", [lambda x: x * (x > 0).float(), lambda x: x.masked_fill(x < 0, 0), lambda x: x * (x > 0).to(x.dtype)]
)
def test_masks_written_by_hand_are_relus(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    compiled = _export(Net(lambda m, x: function(m.a(x))), X, tmp_path)
    assert [(site.kind, int(site.kept.sum())) for site in compiled.plan.sites] == [("relu", 4)]


def test_a_constant_model_is_not_blamed_on_the_exporter(tmp_path: Path) -> None:
    head = nn.Linear(8, 8)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with pytest.raises(UnsupportedModelError, match="its outputs are one constant, in PyTorch too"):
        _export(Net(chained, b=head), X, tmp_path)
