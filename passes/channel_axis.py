"""Which axis of a value has the channels: found by looking back for the layer that made them."""

from __future__ import annotations

from typing import Any

from torch import fx

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.passes.graphs import node_shape

__all__ = ["channel_axis"]

# Operations that leave every axis where it is.
_ELEMENTWISE = {
    "add", "sub", "mul", "div", "batch_norm", "dropout", "relu", "hardtanh", "clone", "contiguous", "to", "slice",
}  # fmt: skip
_LAST = {"linear", "matmul", "addmm", "layer_norm", "bmm", "mm"}


def channel_axis(node: fx.Node) -> int:
    """Axis of the channels in the output of an elementwise call, the batch being axis 0.

    The last one behind a linear layer or a layer norm, 1 behind anything else, carried through permutations and
    transpositions on the way.
    """
    moves: list[list[int]] = []
    current: Any = node.args[0]
    axis = 1
    while isinstance(current, fx.Node):
        name, rank = operator_name(current).rstrip("_"), len(node_shape(current) or ())
        if name in _LAST:
            axis = rank - 1
            break
        if name in ("permute", "transpose"):
            moves.append(_order(current, rank))
        elif name not in _ELEMENTWISE:
            break
        current = current.args[0]
    for move in reversed(moves):
        axis = move.index(axis)
    return axis


def _order(node: fx.Node, rank: int) -> list[int]:
    """Per axis of the output, the axis of the input that it was."""
    given: Any = node.args[1] if operator_name(node) == "permute" else node.args[1:3]
    axes = [int(axis) % rank for axis in given]
    if operator_name(node) == "permute":
        return axes
    order = list(range(rank))
    order[axes[0]], order[axes[1]] = axes[1], axes[0]
    return order
