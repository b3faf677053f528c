"""Kept elements written back at public places, in ways that send nothing; the engine makes a loop of a scatter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from autorep_fx.cost.writes import Cut, permutes
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.indexing import public_indices, row_of_indices, take
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS", "WRITTEN_BY_SUMS"]


@dataclass(frozen=True)
class _Write:
    """One write along one axis, with everything else as rows: ``(M, size)`` and ``(M, written)``."""

    base: Value
    values: Value
    kept: Array

    @classmethod
    def of(cls, call: Call) -> _Write:
        base, values = call[0], call[2]
        axis = call.attribute("axis", 0) % base.ndim
        size = base.shape[axis]
        kept = row_of_indices(public_indices(call[1]), base.shape, axis) % size
        if len(np.unique(kept)) != len(kept):
            raise ValueError("it writes one element twice")
        return cls(_rows(base, axis), _rows(values, axis), kept)


def _rows(value: Value, axis: int) -> Value:
    return jnp.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])


def _back(rows: Value, like: Value, axis: int) -> Value:
    """Rows in the shape that they come from."""
    shape = [size for at, size in enumerate(like.shape) if at != axis]
    return jnp.moveaxis(rows.reshape(*shape, -1), -1, axis)


def _scatter(call: Call) -> Value:
    """In the clear."""
    write, axis = _Write.of(call), call.attribute("axis", 0) % call[0].ndim
    return _back(jnp.asarray(write.base).at[:, write.kept].set(write.values), call[0], axis)


def _by_sums(call: Call) -> Value:
    """In the engine, by the cheaper of two ways."""
    write, axis = _Write.of(call), call.attribute("axis", 0) % call[0].ndim
    dense = permutes(write.base.shape[1], len(write.kept))
    return _back(_permuted(write) if dense else _added(write), call[0], axis)


def _permuted(write: _Write) -> Value:
    """One gather from the tensor and the values beside it."""
    size = write.base.shape[1]
    places = np.arange(size)
    places[write.kept] = size + np.arange(len(write.kept))
    return take(jnp.concatenate([write.base, write.values], 1), places, 1)


def _added(write: _Write) -> Value:
    """What changes, spread over rows of zeros, and the rows put where they belong.

    The factors are 0 and 1, and the numbers' own integers are multiplied: nothing is truncated, nothing is sent, and
    the result is exact in a ring. In floating point it would not be: ``base + (value - base)`` rounds.
    """
    count, size = write.base.shape
    change = write.values - take(write.base, write.kept, 1)
    source, columns, rows = _masks(write.kept, size)
    blocks, most, width = columns.shape
    spread = _integers(take(change, source.reshape(-1), 1)).reshape(count, blocks, most, 1) * columns
    spread = spread.transpose(1, 2, 0, 3).reshape(blocks, most, count * width)
    placed = lax.dot_general(rows, spread, (((2,), (1,)), ((0,), (0,))))
    placed = placed.reshape(-1, count, width).transpose(1, 0, 2).reshape(count, size)
    return write.base + _like(placed, write.base)


def _masks(kept: Array, size: int) -> tuple[Array, Array, Array]:
    """Per block: which element each of its rows of zeros takes, the column that it goes to, and the row.

    Returns:
        Elements ``(blocks, most)``, and 0/1 masks ``(blocks, most, width)`` and ``(blocks, rows, most)``. A block of
        fewer elements takes any in their place, and masks it.
    """
    cut = Cut.of(size, len(kept))
    of_block = size // cut.blocks
    order = np.argsort(kept, kind="stable")
    block, within = np.divmod(kept[order], of_block)
    place = np.arange(len(kept)) - np.searchsorted(block, block)
    source = np.zeros((cut.blocks, int(place.max()) + 1), dtype=np.int32)
    columns = np.zeros((*source.shape, cut.width), dtype=np.int32)
    rows = np.zeros((cut.blocks, of_block // cut.width, source.shape[1]), dtype=np.int32)
    source[block, place] = order
    columns[block, place, within % cut.width] = 1
    rows[block, within // cut.width, place] = 1
    return source, columns, rows


def _integers(value: Value) -> Value:
    return lax.bitcast_convert_type(value, jnp.int32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _like(value: Value, other: Any) -> Value:
    floating = jnp.issubdtype(other.dtype, jnp.floating)
    return lax.bitcast_convert_type(value, jnp.float32) if floating else value


def _obstacles(node: Node) -> list[str]:
    reduction = node.attributes.get("reduction", "none")
    return [] if reduction == "none" else [f"a reduction by {reduction!r}"]


OPERATORS = {"ScatterElements": Operator(_scatter, _obstacles)}
#: The form for the engine; in the clear it would round.
WRITTEN_BY_SUMS = Operator(_by_sums, _obstacles)
