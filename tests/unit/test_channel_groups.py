"""Channel groups: which sites share one order of channels, and what declines them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep_fx.kinds import KINDS
from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.channel_groups import channel_groups
from autorep_fx.sites import ChannelGroup
from nets import Call


def _found(function: Callable[..., Tensor], *shape: int, **parts: nn.Module) -> tuple[ChannelGroup, ...]:
    captured = capture_graph(Call(function, **parts), torch.randn(2, *(shape or (4, 6, 6))))
    return channel_groups(CanonicalizePass()(captured).module)


def groups(function: Callable[..., Tensor], *shape: int, **parts: nn.Module) -> list[tuple[dict[str, int], int, int]]:
    """Offsets, channels and number of ties of every group that is not declined."""
    found = _found(function, *shape, **parts)
    return [(dict(g.offsets), g.channels, len(g.ties)) for g in found if g.declined is None]


def declined(function: Callable[..., Tensor], *shape: int, **parts: nn.Module) -> dict[str, str]:
    """Reasons by the names of the sites, joined."""
    found = _found(function, *shape, **parts)
    return {" ".join(g.sites): g.declined for g in found if g.declined is not None}


def conv(given: int, made: int, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(given, made, size, padding=size // 2, **options)


def test_a_chain_ties_nothing() -> None:
    """A dense convolution takes channels in any order, and a pooled, flattened map reaches a linear layer."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.two(F.max_pool2d(F.relu(m.norm(m.one(x))), 2)).sigmoid()
        return m.head(F.dropout(F.avg_pool2d(x, 3).flatten(1), 0.5, m.training))

    parts = {"one": conv(4, 8), "norm": nn.BatchNorm2d(8), "two": conv(8, 5), "head": nn.Linear(5, 3)}
    assert groups(forward, **parts) == [({"relu": 0}, 8, 0), ({"sigmoid": 0}, 5, 0)]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_activation_keeps_its_channels(kind: str) -> None:
    """Behind it they are still those of the convolution."""
    _, name, overload = KINDS[kind].target.split(".")
    activation = getattr(getattr(torch.ops.aten, name), overload)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        slopes = [m.one.bias] * KINDS[kind].parameters
        return m.head(activation(m.one(x), *slopes).tanh())

    ((offsets, channels, ties),) = groups(forward, one=conv(4, 8), head=conv(8, 1))
    assert (list(offsets.values()), channels, ties) == ([0, 0], 8, 0)


def test_a_residual_sum_ties_the_ends_of_its_branches() -> None:
    """The inner activation is free; the one on the shortcut and the one behind the sum are not."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        return m.head(F.relu(m.two(F.relu(m.one(x))) + x))

    parts = {"stem": conv(4, 8), "one": conv(8, 8), "two": conv(8, 8), "head": conv(8, 2)}
    assert groups(forward, **parts) == [({"relu": 0, "relu#3": 0}, 8, 1), ({"relu#2": 0}, 8, 0)]


def test_blocks_on_one_trunk_are_one_group() -> None:
    """Two residual blocks: the trunk's three sites share one order; a projection starts a new one."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(m.two(F.relu(m.one(x))) + x)
        x = F.relu(m.four(F.relu(m.three(x))) + x)
        return m.head(F.relu(m.six(x) + m.skip(x)))

    parts = {name: conv(8, 8) for name in ("one", "two", "three", "four")}
    parts |= {"stem": conv(4, 8), "six": conv(8, 6), "skip": conv(8, 6, 1), "head": conv(6, 1)}
    assert groups(forward, **parts) == [
        ({"relu": 0, "relu#3": 0, "relu#5": 0}, 8, 2), ({"relu#2": 0}, 8, 0), ({"relu#4": 0}, 8, 0),
        ({"relu#6": 0}, 6, 1),
    ]  # fmt: skip


def test_a_concatenation_lays_sites_side_by_side() -> None:
    """Dense connections: sites behind a concatenation cover it from 0, those before it their own stretch."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a = F.relu(m.one(x))
        b = F.relu(m.two(a))
        c = F.relu(m.three(F.relu(m.norm(torch.cat([a, b], 1)))))
        return m.head(torch.cat([b, c, a], 1)[:, 2:])

    parts = {"one": conv(4, 5), "two": conv(5, 3), "three": conv(8, 2), "norm": nn.BatchNorm2d(8), "head": conv(8, 1)}
    reason = declined(forward, **parts)["relu relu#2 relu#3 relu#4"]
    assert "meets the same channels at another position" in reason

    def dense(m: nn.Module, x: Tensor) -> Tensor:
        a = F.relu(m.one(x))
        b = F.relu(m.two(a))
        c = F.relu(m.three(F.relu(m.norm(torch.cat([a, b], 1)))))
        return m.head(torch.cat([a, b, c], 1))

    parts["head"] = conv(10, 1)
    assert groups(dense, **parts) == [({"relu": 0, "relu#2": 5, "relu#3": 0, "relu#4": 8}, 10, 2)]


def test_slices_and_splits_are_stretches() -> None:
    """Both halves of a split lie in what was split; a padded shortcut lies inside the wider map."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.one(x))
        left, right = x.chunk(2, 1)
        return m.head(torch.cat([left.sigmoid(), m.two(right).relu()], 1))

    assert groups(forward, one=conv(4, 8), two=conv(4, 3), head=conv(7, 1)) == [
        ({"relu": 0, "sigmoid": 0, "relu#2": 4}, 8, 1)
    ]

    def shortcut(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.one(x))
        return m.head(F.relu(m.two(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))))

    parts = {"one": conv(4, 5), "two": conv(5, 8, stride=2), "head": conv(8, 1)}
    assert groups(shortcut, **parts) == [({"relu": 1, "relu#2": 0}, 8, 2)]


def test_a_depthwise_convolution_ties_both_of_its_sides() -> None:
    """An inverted residual: expanded, filtered per channel, projected."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(m.project(F.relu6(m.filter(F.relu6(m.expand(x))))) + x)

    parts = {"stem": conv(4, 3), "expand": conv(3, 9, 1), "filter": conv(9, 9, groups=9), "project": conv(9, 3, 1)}
    assert groups(forward, **parts, head=conv(3, 1)) == [({"clip": 0, "clip#2": 0}, 9, 1)]


@pytest.mark.parametrize("linear", [False, True])
def test_a_squeeze_and_excite_gate_is_tied_to_what_it_scales(linear: bool) -> None:
    """Pooled to a vector and back to a map, or kept a map: the sigmoid has the channels of the product."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.one(x))
        s = x.mean((2, 3)) if linear else F.adaptive_avg_pool2d(x, 1)
        s = m.up(F.relu(m.down(s))).sigmoid()
        return m.head(x * (s.view(-1, 8, 1, 1) if linear else s))

    down, up = (nn.Linear(8, 2), nn.Linear(2, 8)) if linear else (conv(8, 2, 1), conv(2, 8, 1))
    assert groups(forward, one=conv(4, 8), down=down, up=up, head=conv(8, 1)) == [
        ({"relu": 0, "sigmoid": 0}, 8, 1), ({"relu#2": 0}, 2, 0),
    ]  # fmt: skip


def test_tokens_have_their_channels_last() -> None:
    """A map becomes tokens by a view and a permutation; the hidden layer of a block is free."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.one(x)).flatten(2).transpose(1, 2)
        x = m.two(F.gelu(m.hidden(m.norm(x)))) + x
        return m.head(x.tanh().mean(1))

    parts = {"one": conv(4, 6), "norm": nn.LayerNorm(6), "hidden": nn.Linear(6, 12), "two": nn.Linear(12, 6)}
    assert groups(forward, **parts, head=nn.Linear(6, 2)) == [({"relu": 0, "tanh": 0}, 6, 1), ({"gelu": 0}, 12, 0)]


def test_a_map_of_one_channel_ties_nothing() -> None:
    """Spatial attention: averaged over the channels, broadcast to all of them."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.one(x))
        return m.head(x * m.two(x.mean(1, keepdim=True)).sigmoid())

    assert groups(forward, one=conv(4, 8), two=conv(1, 1), head=conv(8, 1)) == [
        ({"relu": 0}, 8, 0), ({"sigmoid": 0}, 1, 0),
    ]  # fmt: skip


def _shuffled(m: nn.Module, x: Tensor) -> Tensor:
    left, right = F.relu(m.one(x)).chunk(2, 1)
    x = torch.cat([left, F.relu(m.two(right))], 1)
    return m.head(x.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6))


def test_what_moves_channels_declines_its_group() -> None:
    """Shuffles, grouped convolutions, the model's own input and output: each by name."""
    found = declined(_shuffled, one=conv(4, 8), two=conv(4, 4), head=conv(8, 1))
    assert list(found) == ["relu relu#2"]
    assert "splits or mixes the axis of the channels" in found["relu relu#2"]

    def grouped(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(F.relu(m.two(F.relu(m.one(x)))))

    found = declined(grouped, one=conv(4, 8), two=conv(8, 8, groups=2), head=conv(8, 1))
    assert {name: "2 groups of channels" in reason for name, reason in found.items()} == {"relu": True, "relu#2": True}

    def dynamic(m: nn.Module, x: Tensor) -> Tensor:
        kernel = F.relu(m.one(x)).mean(0).view(8, 4, 3, 3)
        return F.conv2d(x, kernel)

    assert "multiplies two values" in declined(dynamic, one=conv(4, 8))["relu"]

    def ends(m: nn.Module, x: Tensor) -> Tensor:
        return F.relu(m.two(F.relu(m.one(x) + x))).sigmoid()

    assert declined(ends, one=conv(4, 4), two=conv(4, 8)) == {
        "relu": "the order of the model's input is the user's",
        "relu#2 sigmoid": "the model's output shows them in this order",
    }


def test_calls_of_one_module_are_sites_of_their_own() -> None:
    """A shared activation ties nothing by being shared."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(m.act(m.two(m.act(m.one(x)))))

    parts = {"one": conv(4, 8), "two": conv(8, 5), "act": nn.ReLU(), "head": conv(5, 1)}
    assert groups(forward, **parts) == [({"act": 0}, 8, 0), ({"act#2": 0}, 5, 0)]
