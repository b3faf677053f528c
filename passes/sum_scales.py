"""The scale of a sum: a linear operation takes over that of what it is added to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.passes.form_wishes import HIGH, LOW
from autorep_fx.passes.forms import Form
from autorep_fx.passes.gate_forms import Kind, NaturalForm
from autorep_fx.passes.graphs import node_shape
from autorep_fx.passes.linear_ops import LinearOp

__all__ = ["SumScales", "left_alone"]

aten = torch.ops.aten


class SumScales:
    """Follows residual sums: one side comes first in whatever scale, and the other is computed in the same.

    Args:
        module: The graph.
        ops: Its linear operations, which leave their outputs in any scale.
    """

    def __init__(self, module: fx.GraphModule, ops: Mapping[fx.Node, LinearOp]) -> None:
        self._ops = ops
        self._position = {node: number for number, node in enumerate(module.graph.nodes)}

    def leader(self, node: fx.Node) -> fx.Node | None:
        """What a linear operation is added to, where that comes first and nothing else reads the operation."""
        if node not in self._ops or len(node.users) != 1:
            return None
        other = _other(next(iter(node.users)), node)
        return other if other is not None and self._position[other] < self._position[node] else None

    def is_free(self, node: fx.Node) -> bool:
        """Whether all readers of a value take it in any scale, at no cost."""
        return all(user in self._ops or self._adapts(user, node) for user in node.users)

    def _adapts(self, user: fx.Node, node: fx.Node) -> bool:
        other = _other(user, node)
        return other is not None and self.leader(other) is node

    def taken_over(self, node: fx.Node, forms: Mapping[fx.Node, Form], wish: Tensor) -> Tensor:
        """``(C,)`` scale of a linear operation's outputs: that of its leader, else what its readers wish."""
        leader, op = self.leader(node), self._ops[node]
        if leader is None:
            return wish
        form = forms.get(leader) or Form.identity(op.axis, op.outputs)
        if (form.axis, len(form.scale)) != (op.axis, op.outputs):
            return wish
        return torch.where(form.scale == 0, wish, form.scale)  # a scale of 0 is a constant, to which nothing adapts


def left_alone(scale: Tensor, natural: NaturalForm) -> Tensor:
    """The scales that a gate leaves its channels in, where all are within bounds; else those that are wished.

    A product corrects all channels at once, so that they are corrected together, and as late as possible: deviations
    grow along a chain of sums.
    """
    any_will_do = natural.kinds == Kind.GENERAL
    size = natural.out.scale.abs()
    fits = any_will_do | ((size >= LOW) & (size <= HIGH))
    return torch.where(any_will_do, scale, natural.out.scale) if bool(fits.all()) else scale


def _other(total: fx.Node, node: fx.Node) -> fx.Node | None:
    """The other term of a sum of two values of one shape."""
    if total.target is not aten.add.Tensor or len(total.args) != 2 or total.kwargs:
        return None
    others: list[Any] = [term for term in total.args if term is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    shapes = node_shape(others[0]), node_shape(node)
    return others[0] if None not in shapes and shapes[0][1:] == shapes[1][1:] else None  # type: ignore[index]
