"""Fold constants, and merge what is compared twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
import independent_counter
from autorep_fx.cost.fx_count import operator_name
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.fold_constants import FoldConstantsPass


class Standardised(nn.Module):
    """A convolution whose weights are standardised at every call, and a position table made from an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.table = nn.Parameter(torch.randn(7, 4))
        self.register_buffer("index", torch.tensor([1, 5, 2, 2]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        x = F.conv2d(x, weight, self.conv.bias).mean((2, 3))
        return F.relu(x + self.table[self.index].sum(0))


def operations(module: CapturedModule) -> list[str]:
    """Names of the ATen calls in order."""
    names = [operator_name(node) for node in module.graph.nodes]
    return [name for name in names if name]


@pytest.fixture
def captured() -> CapturedModule:
    """The network, captured."""
    torch.manual_seed(0)
    return capture_graph(Standardised(), torch.randn(2, 3, 6, 6))


def test_what_no_input_reaches_is_computed_once(captured: CapturedModule) -> None:
    """Only input-dependent operations are left, and the outputs are bit-equal."""
    x = torch.randn(5, 3, 6, 6)
    before = captured(x)
    assert FoldConstantsPass()(captured).modified
    assert operations(captured) == ["conv2d", "mean", "add", "relu"]
    assert torch.equal(captured(x), before)
    assert not FoldConstantsPass()(captured).modified


def test_values_at_random_are_no_constants() -> None:
    """They stay calls."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + torch.rand(4))

    module = capture_graph(Noisy(), torch.randn(2, 4))
    assert not FoldConstantsPass()(module).modified
    assert operations(module) == ["rand", "add", "relu"]


def test_the_standardised_weights_stay_trainable() -> None:
    """Folding belongs to lowering: in the gated model the raw weights have gradients."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    gated = autorep_fx.prepare(Standardised(), "50%", example_inputs=x)
    gated(x).sum().backward()
    gradients = {name: parameter.grad for name, parameter in gated.named_parameters()}
    assert gradients["network.conv.weight"] is not None
    assert bool((gradients["network.table"] != 0).any())  # type: ignore[union-attr]


class Twice(nn.Module):
    """The same value is pooled and rectified at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        left = F.max_pool2d(F.relu(x), 2)
        right = F.max_pool2d(F.relu(x), 2)
        return (left * 2 + right - F.max_pool2d(x, 2)).mean((2, 3))


def test_the_same_comparison_is_made_once(tmp_path: Path) -> None:
    """One ReLU and one pool of it, another pool of another value; the exported file has the same count."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = Twice().eval()
    sites = autorep_fx.inspect(model, x).sites
    assert [(site.kind, site.comparisons) for site in sites] == [
        ("relu", 4 * 36), ("max_pool2d", 4 * 9 * 3), ("max_pool2d", 4 * 9 * 3)
    ]  # fmt: skip
    compiled = autorep_fx.transform(model, "100%", example_inputs=x)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    compiled.export(tmp_path / "model.onnx")
    assert independent_counter.count(tmp_path / "model.onnx") == compiled.comparisons == 360
