"""What views, slices and reductions do to the axis that channels lie on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import fx

from autorep_fx.cost.fx_count import operator_name, output_shape
from autorep_fx.passes.channel_spaces import Broken, Layout, Spaces, Value

__all__ = ["argument", "cut", "moved", "padded", "part", "picked", "reduced", "reshaped"]


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _broken(spaces: Spaces, value: Layout, reason: str) -> Broken:
    spaces.decline(value, reason)
    return Broken(reason)


def reshaped(spaces: Spaces, node: fx.Node, value: Value) -> Value:
    """A view: the channels stay one axis, or become the leading factor of one (flattening), or are split."""
    if not isinstance(value, Layout):
        return value
    before, after = output_shape(node.args[0]), output_shape(node)  # type: ignore[arg-type]
    ahead = math.prod(before[: value.axis])
    axes = [
        axis for axis, size in enumerate(after)
        if math.prod(after[:axis]) == ahead and size % value.channels == 0 and size
    ]  # fmt: skip
    if not axes:
        return _broken(spaces, value, f"{node.name} splits or mixes the axis of the channels")
    axis = min(axes, key=lambda found: (after[found] == 1, abs(found - value.axis)))
    return replace(value, axis=axis, rank=len(after), block=after[axis] // value.channels)


def moved(spaces: Spaces, node: fx.Node, value: Value) -> Value:
    """A permutation of axes."""
    if not isinstance(value, Layout):
        return value
    rank, order = value.rank, list(range(value.rank))
    if operator_name(node) == "permute":
        order = [int(axis) % rank for axis in node.args[1]]  # type: ignore[union-attr,arg-type]
    else:
        one, other = (argument(node, 1, "dim0", 0) % rank, argument(node, 2, "dim1", 1) % rank)
        order[one], order[other] = order[other], order[one]
    return replace(value, axis=order.index(value.axis))


def reduced(spaces: Spaces, node: fx.Node, value: Value) -> Value:
    """A reduction: over positions it keeps the channels; over the channels it does not ask for their order."""
    if not isinstance(value, Layout):
        return value
    axes = argument(node, 1, "dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(value.rank))
    axes = [axis % value.rank for axis in axes]
    if value.axis in axes:
        return None
    rank = len(output_shape(node))
    gone = sum(axis < value.axis for axis in axes) if rank < value.rank else 0
    return replace(value, axis=value.axis - gone, rank=rank)


def cut(spaces: Spaces, node: fx.Node, value: Value) -> Value:
    """A slice: of positions, or a stretch of the channels."""
    if not isinstance(value, Layout):
        return value
    if argument(node, 1, "dim", 0) % value.rank != value.axis:
        return value
    start = argument(node, 2, "start") or 0
    if not isinstance(start, int) or argument(node, 4, "step", 1) != 1:
        return _broken(spaces, value, f"{node.name} picks single channels")
    size = value.channels * value.block
    return stretch(spaces, node, value, min(start + size if start < 0 else start, size))


def stretch(spaces: Spaces, node: fx.Node, value: Layout, start: int) -> Value:
    """The channels from ``start`` on, as many as ``node`` has."""
    if value.block != 1:
        return _broken(spaces, value, f"{node.name} cuts flattened channels")
    shape = output_shape(node)
    result = spaces.fresh(shape, value.axis)
    spaces.tie(value.space, result.space, start)
    return result


def part(spaces: Spaces, node: fx.Node, value: Value) -> Value:
    """One piece of a split; ``node`` is the ``getitem``."""
    whole: Any = node.args[0]
    index: Any = node.args[1]
    if not isinstance(value, Layout) or argument(whole, 2, "dim", 0) % value.rank != value.axis:
        return value
    sizes = [int(piece.shape[value.axis]) for piece in whole.meta["val"]]
    return stretch(spaces, node, value, sum(sizes[:index]))


def picked(spaces: Spaces, node: fx.Node, value: Value) -> Value:
    """One position of an axis, which disappears."""
    if not isinstance(value, Layout):
        return value
    axis = argument(node, 1, "dim", 0) % value.rank
    if axis == value.axis:
        return _broken(spaces, value, f"{node.name} picks single channels")
    return replace(value, axis=value.axis - (axis < value.axis), rank=value.rank - 1)


def padded(spaces: Spaces, node: fx.Node, value: Value) -> Value:
    """Padding: of positions, or of the channels (a shortcut that adds empty ones)."""
    if not isinstance(value, Layout):
        return value
    widths: Any = node.args[1]
    place = 2 * (value.rank - 1 - value.axis)  # widths start with the last axis
    if place >= len(widths) or not any(widths[place : place + 2]):
        return value
    if value.block != 1 or argument(node, 2, "mode", "constant") not in ("constant", 0, 0.0):
        return _broken(spaces, value, f"{node.name} pads the channels with copies")
    result = spaces.fresh(output_shape(node), value.axis)
    spaces.tie(result.space, value.space, int(widths[place]), node.name)
    return result
