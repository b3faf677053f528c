"""The scale in which the readers of a value would like to find it: one walk backwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.form_rules import carries
from autorep_fx.passes.forms import Form
from autorep_fx.passes.gate_forms import HOMOGENEOUS, Kind, kept_by_channel, natural_form, padded_coefficients
from autorep_fx.passes.graphs import node_shape
from autorep_fx.passes.linear_ops import LinearOp

__all__ = ["HIGH", "LOW", "scale_wishes"]

aten = torch.ops.aten
_FREE = torch.tensor(torch.nan, dtype=torch.float64)
_ONE = torch.tensor(1.0, dtype=torch.float64)
#: Wishes stay within these: stored values must fit into float16 and into fixed point.
LOW, HIGH = 2.0**-6, 2.0**6


def scale_wishes(
    module: fx.GraphModule, ops: Mapping[fx.Node, LinearOp], gates: Mapping[fx.Node, GatedActivation],
    affine: Mapping[fx.Node, tuple[fx.Node, int, Tensor, Tensor]],
) -> dict[fx.Node, Tensor]:  # fmt: skip
    """Scale by node, ``(C,)`` or one number; NaN where all readers take any. A wish binds nobody."""
    walk = _Backward(ops, gates, affine)
    for node in reversed(module.graph.nodes):
        walk.visit(node)
    return walk.wishes


class _Backward:
    def __init__(
        self, ops: Mapping[fx.Node, LinearOp], gates: Mapping[fx.Node, GatedActivation],
        affine: Mapping[fx.Node, tuple[fx.Node, int, Tensor, Tensor]],
    ) -> None:  # fmt: skip
        self.ops, self.gates, self.affine = ops, gates, affine
        self.wishes: dict[fx.Node, Tensor] = {}

    def visit(self, node: fx.Node) -> None:
        """The first wish per channel among the readers of ``node``."""
        result = _FREE
        for user in node.users:
            wish = self._of_reader(user, node)
            if result.dim() == 0 or wish.dim() == 0 or len(result) == len(wish):
                result = torch.where(result.isnan(), wish, result)
        self.wishes[node] = result

    def _of_reader(self, user: fx.Node, node: fx.Node) -> Tensor:
        own = self.wishes.get(user, _ONE)
        if user in self.ops:
            return _FREE
        if user in self.gates:
            return self._of_gate(self.gates[user], own)
        if user in self.affine:
            return (own / self.affine[user][2].abs()).clamp(LOW, HIGH)
        if user.target is aten.add.Tensor:
            return torch.where(own.isnan(), 1.0, own)
        if user.target is aten.cat.default:
            return _of_part(user, node, own)
        if carries(user):
            shapes = node_shape(user), node_shape(node)
            alike = all(shape is not None and len(shape) > 1 for shape in shapes)
            return own if alike and shapes[0][1] == shapes[1][1] else _FREE  # type: ignore[index]
        return _ONE

    def _of_gate(self, gate: GatedActivation, own: Tensor) -> Tensor:
        """The scale before a gate whose output is wished in the scale ``own``: s of c2·s² = own, for a square.

        Where any scale will do behind it, a square with kept elements in its channel wishes s = 1/c2: then c2·s² = s,
        in which ReLU leaves the kept ones too, and these need no product.
        """
        channels = gate.site.channels
        if isinstance(gate, GatedPool) or (own.dim() and len(own) != channels):
            return _ONE
        own = own.expand(channels)
        _, c1, c2 = padded_coefficients(gate)
        kinds = natural_form(gate, Form.identity(1, channels)).kinds
        result: Any = torch.where(kinds == Kind.SQUARE, (own / c2).abs().sqrt(), torch.nan)
        result = torch.where(kinds == Kind.LINEAR, (own / c1).abs(), result)
        homogeneous = gate.site.kind in HOMOGENEOUS
        if homogeneous:
            usable = (c2 >= 1 / HIGH) & (c2 <= 1 / LOW)
            mixed = (kinds == Kind.SQUARE) & usable & kept_by_channel(gate).any(1)
            result = torch.where(mixed & own.isnan(), 1 / c2, result)
        kept = own.clone() if homogeneous else torch.ones_like(own)
        result = torch.where(kinds == Kind.KEPT, kept, result)
        wish: Tensor = result.clamp(LOW, HIGH)
        return wish


def _of_part(user: fx.Node, node: fx.Node, own: Tensor) -> Tensor:
    parts: Any = user.args[0]
    axis = argument(user, 1, "dim", 0)
    if own.dim() == 0:
        return own
    start = 0
    for part in parts:
        size = (node_shape(part) or ())[axis]
        if part is node and isinstance(size, int):
            return own[start : start + size]
        start += size
    return _ONE
