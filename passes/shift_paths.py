"""Where a constant per channel can be added to a value without computing anything: in the biases before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.form_rules import carries, needs_no_shift
from autorep_fx.passes.graphs import node_shape
from autorep_fx.passes.linear_ops import LinearOp

__all__ = ["ShiftPaths"]

aten = torch.ops.aten


class ShiftPaths:
    """Ways back from a value to biases.

    1. A linear operation adds it to its bias.
    2. A sum takes it through one of its terms, a concatenation through all of its parts, an average, a maximum and an
       affine map through their input.
    3. Nothing else reads what lies on the way.

    Args:
        ops: Linear operations by node.
        affine: Affine maps by node, with their input, axis, factor and addend.
    """

    def __init__(
        self, ops: Mapping[fx.Node, LinearOp], affine: Mapping[fx.Node, tuple[fx.Node, int, Tensor, Tensor]]
    ) -> None:
        self.ops, self.affine = ops, affine

    def can_add(self, node: fx.Node, axis: int) -> bool:
        """Whether a constant per channel, these on ``axis``, can be added to ``node``."""
        if node in self.ops:
            return self.ops[node].axis == axis
        sources = self._sources(node, axis)
        if node.target is aten.cat.default:
            return bool(sources) and all(self._is_open(source, axis) for source in sources)
        return any(self._is_open(source, axis) for source in sources)

    def add(self, node: fx.Node, amount: Tensor, axis: int) -> None:
        """Add ``(C,)`` to the true value of ``node``, where :meth:`can_add` says so."""
        if node in self.ops:
            self.ops[node].add(amount)
            return
        sources = self._sources(node, axis)
        if node.target is aten.cat.default:
            parts = amount.split([int((node_shape(source) or ())[axis]) for source in sources])
            for source, part in zip(sources, parts, strict=True):
                self.add(source, part, axis)
            return
        if node in self.affine:
            amount = amount / self.affine[node][2]
        self.add(next(source for source in sources if self._is_open(source, axis)), amount, axis)

    def _is_open(self, source: fx.Node, axis: int) -> bool:
        # Rule 3.
        return len(source.users) == 1 and self.can_add(source, axis)

    def _sources(self, node: fx.Node, axis: int) -> list[fx.Node]:
        """Rule 2: the inputs through which it can come."""
        if node in self.affine:
            x, own, factor, _ = self.affine[node]
            return [x] if own == axis and bool(factor.all()) else []
        given: list[Any] = list(node.args[0]) if node.target is aten.cat.default else list(node.args)  # type: ignore[arg-type]
        if node.target is aten.cat.default:
            along = argument(node, 1, "dim", 0) % len(node_shape(node) or (0,)) == axis
            return given if along and len(set(given)) == len(given) else []
        if node.target is aten.add.Tensor:
            terms = len(given) == 2 and not node.kwargs and given[0] is not given[1]
            return [term for term in given if _alike(term, node)] if terms else []
        if not given or not isinstance(given[0], fx.Node) or not carries(node) or needs_no_shift(node):
            return []
        before, after = node_shape(given[0]), node_shape(node)
        same = before is not None and after is not None and len(before) == len(after) and before[axis] == after[axis]
        return [given[0]] if same else []


def _alike(term: Any, node: fx.Node) -> bool:
    shape, own = node_shape(term) if isinstance(term, fx.Node) else None, node_shape(node)
    return shape is not None and own is not None and shape[1:] == own[1:]
