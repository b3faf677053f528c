"""The site graph: levels, depths and ranges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.site_graph import build_site_graph, site_ranges
from autorep_fx.sites import ChannelGroup, Site, SiteGraph
from nets import Call


def canonical(function: Callable[..., Tensor], *shape: int, **parts: nn.Module) -> CapturedModule:
    """The canonical graph of a function of some layers; a dense head hides its channels from the output."""
    captured = capture_graph(Call(function, **parts), torch.randn(2, *(shape or (4, 6, 6))))
    result = CanonicalizePass()(captured).module
    assert isinstance(result, CapturedModule)
    return result


SIZES = {"one": (4, 8), "two": (8, 8), "head": (8, 1)}


def test_levels_depths_and_ranges() -> None:
    """A site's level is its place on the longest chain; its depth counts multiplications up to its output."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.one(x)), 2)
        return m.head(F.relu(m.two(x).sigmoid() + x))

    parts = {name: nn.Conv2d(*sizes, 3, padding=1) for name, sizes in SIZES.items()}
    module = canonical(forward, **parts)
    inputs = ExampleInputs.of(torch.randn(2, 4, 6, 6))
    graph = build_site_graph(module, ranges=site_ranges(module, inputs))
    assert dict(graph.levels) == {"relu": 1, "max_pool2d": 2, "sigmoid": 3, "relu#2": 4}
    assert graph.comparison_depth == 4
    assert dict(graph.depths) == {"relu": 3, "max_pool2d": 3, "sigmoid": 6, "relu#2": 8}
    assert graph.multiplicative_depth == 9
    one = dict(module.named_parameters())
    before = F.conv2d(inputs.args[0], one["one.weight"], one["one.bias"], padding=1)
    assert graph.ranges["relu"] == pytest.approx((before.min().item(), before.max().item()))
    assert graph.ranges["max_pool2d"][0] >= 0


def test_ranges_of_keyword_arguments() -> None:
    """Arguments in another order than the model's own are told apart by name."""

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.relu(x) - F.relu(y)

    inputs = ExampleInputs.of({"y": torch.full((2, 3), 7.0), "x": torch.full((2, 3), -2.0)})
    module = CanonicalizePass()(capture_graph(Two(), inputs)).module
    assert site_ranges(module, inputs) == {"relu": (-2.0, -2.0), "relu#2": (7.0, 7.0)}


def test_a_graph_without_sites() -> None:
    """Nothing compares: no level, no depth."""
    graph = SiteGraph([], [], multiplicative_depth=2)
    assert (graph.comparison_depth, dict(graph.levels), graph.channel_groups) == (0, {}, ())
    lone = SiteGraph(
        [Site("a", "relu", (4,), 1)], [], multiplicative_depth=2, channel_groups=[ChannelGroup({"a": 0}, 4)]
    )
    assert lone.channel_groups[0].sites == ("a",)
