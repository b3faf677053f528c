"""Packing and dropping channels, and merging linear operations: what is left, and that it is the same function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
from autorep_fx.cost.fx_count import operator_name
from autorep_fx.passes.channel_order import count_runs, fewest_runs
from autorep_fx.passes.fold_batchnorm import FoldBatchnormPass
from autorep_fx.passes.graphs import shared_copy
from autorep_fx.passes.pack_channels import PackChannelsPass
from nets import Call
from property.structures import gated_at_random, spread


def _residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(m.bn(m.one(x)) + x)
        return m.head(F.avg_pool2d(F.relu(m.two(x) + x), 2).flatten(1))

    parts = {name: nn.Conv2d(12, 12, 3, padding=1) for name in ("one", "two")}
    return Call(forward, stem=nn.Conv2d(3, 12, 3, padding=1), bn=nn.BatchNorm2d(12), head=nn.Linear(192, 2), **parts)


def _lowered(model: nn.Module, kept: dict[str, list[int]]) -> tuple[autorep_fx.Compiled, list[str]]:
    """Compiled with these channels kept, checked in float64, and its operations."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8).double()
    gated = gated_at_random(spread(model, 0).double(), x, granularity="channel")
    for name, channels in kept.items():
        gated.gates[name].kept.zero_()
        gated.gates[name].kept[channels] = True
    compiled = autorep_fx.lower(gated)
    with torch.no_grad():
        torch.testing.assert_close(compiled.module(x[:2]), gated(x[:2]), rtol=0, atol=1e-10)
    assert compiled.comparisons == compiled.plan.comparisons
    return compiled, [name for node in compiled.module.graph.nodes if (name := operator_name(node))]


def _conv_shapes(compiled: autorep_fx.Compiled) -> list[tuple[int, ...]]:
    """Shapes of one sample behind each convolution, as the graph records them."""
    return [tuple(n.meta["val"].shape[1:]) for n in compiled.module.graph.nodes if operator_name(n) == "conv2d"]


def test_nested_kept_sets_are_one_slice_each() -> None:
    """Three sites of one residual chain, scattered but nested kept sets: two slices per site, no gather."""
    kept = {"relu": [0, 2, 4, 6, 8, 10], "relu#2": [2, 6, 10], "relu#3": [2, 4, 6, 10]}
    _, operations = _lowered(_residual(), kept)
    assert operations.count("slice") == 6
    assert "index_select" not in operations


@pytest.mark.parametrize("kept", [[], [1, 5, 9]])
def test_replaced_channels_lie_together_by_what_they_compute(kept: list[int]) -> None:
    """Squares, nearly linear quadratics as they are, and linear channels in turn: one slice for each kind."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 2, 1)).double()
    x = torch.randn(3, 3, 8, 8).double()
    gated = gated_at_random(model, x, granularity="channel", share=0.0)
    rows = torch.tensor([[0.2, 0.1, 0.0], [0.5, 0.6, 0.7], [0.4, 1e-5, 0.0]]).repeat(1, 4).double()
    gated.gates["1"].set_coefficients(rows)
    gated.gates["1"].kept[kept] = True
    compiled = autorep_fx.lower(gated)
    operations = [name for node in compiled.module.graph.nodes if (name := operator_name(node))]
    assert operations.count("slice") == 3 + bool(kept)
    assert operations.count("mul") == 3  # one for the squares, two by Horner's rule
    torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)


def test_sets_that_are_not_nested_take_few_runs() -> None:
    """Two disjoint sets beside each other: three runs for one of the sites at most."""
    _, operations = _lowered(_residual(), {"relu": [0, 4, 8], "relu#2": [2, 6, 10], "relu#3": [0, 4, 8]})
    assert operations.count("slice") <= 7
    assert "index_select" not in operations


def test_convolutions_in_groups_are_declined_by_name() -> None:
    """Their channels stay, many runs are gathered, and the note says why."""
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=3))
    compiled, operations = _lowered(model, {"1": list(range(0, 24, 2))})
    assert "index_select" in operations
    [text] = [text for text in compiled.lowering_notes if "stay where they are" in text]
    assert text == "1: its channels stay where they are: conv2d_1 is a convolution in 3 groups of channels"


def test_depthwise_convolutions_and_slopes_move_with_their_channels() -> None:
    """A PReLU with a slope per channel before a depthwise convolution."""
    model = nn.Sequential(
        nn.Conv2d(3, 20, 1), nn.PReLU(20), nn.Conv2d(20, 20, 3, groups=20), nn.ReLU(), nn.Conv2d(20, 2, 1)
    )
    model[1].weight.data.uniform_(0.1, 0.9)
    _, operations = _lowered(model, {"1": list(range(0, 20, 2)), "3": list(range(0, 20, 4))})
    assert operations.count("slice") == 4


def test_a_good_order_is_left_alone() -> None:
    """Nothing is modified where kept channels are contiguous, or where nothing is kept."""
    torch.manual_seed(0)
    gated = gated_at_random(_residual(), torch.randn(2, 3, 8, 8), granularity="channel", share=0.0)
    module = shared_copy(gated.network)
    FoldBatchnormPass()(module)
    assert PackChannelsPass()(module).modified is False
    for gate in gated.gates.values():
        gate.kept[:3] = True
    assert PackChannelsPass()(shared_copy(gated.network)).modified is False


@pytest.mark.parametrize("seed", range(5))
def test_orders_never_get_worse_and_stay_in_their_cells(seed: int) -> None:
    """For random rows: fewer runs than before or None; each cell is mapped onto itself; nested rows take one run."""
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.rand(3, 20, generator=generator) < 0.5).to(torch.int8)
    cells = [(0, 8), (8, 20)]
    order = fewest_runs(rows, cells)
    assert order is not None
    assert count_runs(rows[:, order]) < count_runs(rows)
    assert all(sorted(order[a:b].tolist()) == list(range(a, b)) for a, b in cells)
    nested = (torch.rand(20, generator=generator) < torch.tensor([[0.2], [0.5], [0.8]])).to(torch.int8).cummax(0).values
    order = fewest_runs(nested, [(0, 20)])
    assert order is None or count_runs(nested[:, order]) == 6


def test_unused_and_constant_channels_go_with_their_weights() -> None:
    """A channel without weights and one that nothing reads; what is kept stays, and shapes are recorded anew."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(180, 2))
    with torch.no_grad():
        model[0].weight[1] = 0  # a constant, before and behind its polynomial
        model[2].weight[:, 4] = 0  # nothing reads channel 4
        model[5].weight.view(2, 5, 36)[:, 2] = 0
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8).double()
    gated = gated_at_random(model.double(), x, share=0.0)
    compiled = autorep_fx.lower(gated)
    torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)
    assert _conv_shapes(compiled) == [(4, 6, 6), (4, 6, 6)]


@pytest.mark.parametrize("channels", [1, 3])
def test_of_channels_that_nothing_reads_one_stays(channels: int) -> None:
    """However many there were."""
    model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 2, 1))
    with torch.no_grad():
        model[2].weight.zero_()
    x = torch.randn(3, 3, 8, 8).double()
    gated = gated_at_random(model.double(), x, share=0.0)
    compiled = autorep_fx.lower(gated)
    torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)
    assert _conv_shapes(compiled) == [(1, 6, 6), (2, 6, 6)]


def test_channels_with_a_kept_element_are_not_dropped() -> None:
    """The plan counts the comparison, so the graph makes it, although its input is a constant."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[1] = 0
    x = torch.randn(3, 3, 8, 8).double()
    gated = gated_at_random(model.double(), x, share=0.5)
    compiled = autorep_fx.lower(gated)
    assert compiled.comparisons == compiled.plan.comparisons == 72
    torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)


MERGED: dict[str, tuple[nn.Module, list[str]]] = {
    "linear layers": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 5)), ["flatten", "linear"]
    ),
    "linear layers through a bottleneck stay": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.ReLU(), nn.Linear(2, 50)), ["flatten", "linear", "linear"]
    ),
    "later 1x1": (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, 2)), ["conv2d"]),
    "earlier 1x1": (nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 3)), ["conv2d"]),
    "padding in between": (
        nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)), ["conv2d", "conv2d"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_linear_operations_that_meet_are_merged_where_that_is_exact_and_cheaper(name: str) -> None:
    """The exact operations are left, and the values are equal."""
    model, expected = MERGED[name]
    x = torch.randn(3, 3, 8, 8).double()
    gated = gated_at_random(model.double(), x, share=0.0, degree=1)
    compiled = autorep_fx.lower(gated)
    assert [n for node in compiled.module.graph.nodes if (n := operator_name(node))] == expected
    torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)
