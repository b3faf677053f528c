"""Gated pools: max pooling within the same budget, per channel kept or an affine map of the average."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
import independent_counter
from autorep_fx.cost.fx_count import operator_name

X = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(0))
KERNEL = {"kernel_size": 3, "stride": 2, "padding": 1}


class Net(nn.Module):
    """A ReLU of 4×9×9, then a pool to 4×5×5 with 8 comparisons each."""

    def __init__(self, **options: int | bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(**{**KERNEL, **options})  # type: ignore[arg-type]
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.conv(x))).mean((2, 3)))


def gated(granularity: str = "element", **options: int | bool) -> autorep_fx.GatedModel:
    """The network with its pool gated, in float64."""
    torch.manual_seed(0)
    config = {"gates": {"pools": True, "granularity": granularity}}
    result = autorep_fx.prepare(Net(**options).double().eval(), "100%", example_inputs=X.double(), config=config)
    result.calibrate(result.example)
    return result


def test_a_pool_is_one_gate_per_channel() -> None:
    """4 units of 5·5·8 comparisons, beside 324 of the ReLU; all kept is the network itself."""
    model = gated()
    gate = model.gates["pool.max_pool2d"]
    assert gate.kept.shape == (4, 1, 1)
    assert gate.unit_cost == 200
    assert model.allowance.gateable == 324 + 800
    assert gated("site").gates["pool.max_pool2d"].kept.numel() == 1


def test_the_affine_map_is_the_least_squares_fit_of_the_maximum() -> None:
    """Against numpy's, per channel, on the input that the pool gets with the ReLU replaced."""
    model = gated()
    gate, relu = model.gates["pool.max_pool2d"], model.gates["relu"]
    with torch.no_grad():
        convolved = F.conv2d(X.double(), model.network.conv.weight, model.network.conv.bias, padding=1)
        x = relu.polynomial(convolved)
        average, largest = F.avg_pool2d(x, **KERNEL, count_include_pad=False), F.max_pool2d(x, **KERNEL)
    for channel in range(4):
        a, m = average[:, channel].flatten(), largest[:, channel].flatten()
        design = torch.stack([torch.ones_like(a), a], 1)
        solution = torch.linalg.lstsq(design, m[:, None]).solution[:, 0]
        assert torch.allclose(gate.coefficients[:, channel].detach(), solution, atol=1e-8)


STATES = {
    "all kept": (torch.ones(4, 1, 1, dtype=torch.bool), ["max_pool2d"]),
    "none kept": (torch.zeros(4, 1, 1, dtype=torch.bool), ["avg_pool2d", "mul", "add"]),
    "two runs": (
        torch.tensor([True, True, False, False]).view(4, 1, 1),
        ["slice", "max_pool2d", "slice", "avg_pool2d", "mul", "add", "cat"],
    ),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("options", [{}, {"ceil_mode": True, "kernel_size": 2, "padding": 0}])
def test_lowered_it_is_what_was_gated(state: str, options: dict[str, int | bool], tmp_path: Path) -> None:
    """Equal outputs, exact operations between ReLU and mean, and the count in the exported file."""
    kept, expected = STATES[state]
    model = gated(**options)
    model.gates["pool.max_pool2d"].kept.copy_(kept)
    model.freeze()
    compiled = autorep_fx.lower(model)
    assert torch.allclose(compiled(X.double()), model(X.double()), atol=1e-10)
    names = [operator_name(node) for node in compiled.module.graph.nodes]
    names = [name for name in names if name]
    assert names[names.index("relu") + 1 : names.index("mean")] == expected
    checked = compiled.export(tmp_path / "model.onnx")
    assert checked.comparisons == 324 + int(kept.sum()) * model.gates["pool.max_pool2d"].unit_cost
    assert independent_counter.count(tmp_path / "model.onnx") == checked.comparisons


def test_pools_and_activations_share_one_budget() -> None:
    """The budget is met exactly across both, and training reaches the pool's map and scores."""
    torch.manual_seed(0)
    data = [(torch.randn(8, 3, 9, 9), torch.randint(0, 3, (8,))) for _ in range(4)]
    config = {"gates": {"pools": True}, "training": {"epochs": 2}, "finetune": {"epochs": 1}}
    result = autorep_fx.transform(Net().eval(), 333, data=data, config=config)
    assert result.comparisons == 333
    assert {site.name for site in result.plan.sites} == {"relu", "pool.max_pool2d"}
    assert result.plan.fixed == ()


def test_gradients_reach_map_and_scores() -> None:
    """A replaced channel trains its coefficients, a score moves by the straight-through rule."""
    model = gated()
    gate = model.gates["pool.max_pool2d"]
    gate.kept[:2] = False
    model.train()(X.double()).square().sum().backward()
    assert gate.raw_coefficients.grad is not None
    assert bool((gate.raw_coefficients.grad[:, :2] != 0).all())
    assert bool((gate.raw_coefficients.grad[:, 2:] == 0).all())
    assert gate.score.grad is not None
    assert bool((gate.score.grad != 0).all())


def test_a_pool_without_an_average_stays_fixed() -> None:
    """Dilated windows; without the option every pool is fixed."""
    model = Net(dilation=2).eval()
    compiled = autorep_fx.transform(model, "50%", example_inputs=X, config={"gates": {"pools": True}})
    [fixed] = compiled.plan.fixed
    assert fixed.reason == "no average can take its place: its windows are dilated by [2, 2]"
    [fixed] = autorep_fx.transform(model, "50%", example_inputs=X).plan.fixed
    assert fixed.kind == "max_pool2d"


def test_a_constant_channel_gets_the_mean_of_its_maximum() -> None:
    """No variance, no slope."""
    model = Net().eval()
    with torch.no_grad():
        model.conv.weight[0] = 0.0
        model.conv.bias[0] = 0.5  # type: ignore[index]
    result = autorep_fx.prepare(model, "50%", example_inputs=X, config={"gates": {"pools": True}})
    result.calibrate(result.example)
    offset, slope = result.gates["pool.max_pool2d"].coefficients[:, 0].tolist()
    assert slope == 0.0
    assert offset == pytest.approx(0.5, abs=0.2)
