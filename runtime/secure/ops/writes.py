"""Kept elements written back at public places, in ways that send nothing; the engine makes a loop of a scatter."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from autorep_fx.cost.writes import MOST_OF_A_BLOCK, Cut, permutes
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.indexing import public_indices, row_of_indices, take
from autorep_fx.runtime.secure.ops.zero import zero_like
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS", "WRITTEN_BY_A_GATHER", "WRITTEN_BY_SUMS"]


def _places(call: Call) -> tuple[int, Array]:
    """The axis, and the places along it that are written to."""
    axis = call.attribute("axis", 0) % call[0].ndim
    size = call[0].shape[axis]
    kept = row_of_indices(public_indices(call[1]), call[0].shape, axis)
    kept = np.where(kept < 0, kept + size, kept)
    if kept.size and (kept.min() < 0 or kept.max() >= size):
        raise ValueError(f"an index is outside of axis {axis}, which has {size} elements")
    if len(np.unique(kept)) != len(kept):
        raise ValueError("it writes one element twice")
    return axis, kept


def _scatter(call: Call) -> Value:
    """In the clear."""
    axis, kept = _places(call)
    base, values = (call.xp.moveaxis(value, axis, -1) for value in (call[0], call[2]))
    if call.xp is np:
        written = base.copy()
        written[..., kept] = values
    else:
        written = jnp.asarray(base).at[..., kept].set(values)
    return call.xp.moveaxis(written, -1, axis)


@dataclass(frozen=True)
class _Write:
    """One write along one axis, with everything else as rows: ``(M, size)`` and ``(M, written)``."""

    base: Value
    values: Value
    kept: Array


def _in_ring(call: Call, *, adds: bool) -> Value:
    """In the engine, by the cheaper of the two ways; by a gather where products with public factors are not there."""
    base, values = call[0], call[2]
    axis, kept = _places(call)
    if call.xp is np:
        return _scatter(call)
    if not len(kept):
        return base
    # A sum with a secret zero makes a secret of what is public, and nothing is sent for it.
    if isinstance(base, np.ndarray):
        base = base + zero_like(values)
    if isinstance(values, np.ndarray):
        values = values + zero_like(base)
    base, values = (jnp.moveaxis(value, axis, -1) for value in (base, values))
    write = _Write(base.reshape(-1, base.shape[-1]), values.reshape(-1, len(kept)), kept)
    return jnp.moveaxis(_written(write, adds=adds).reshape(base.shape), -1, axis)


def _written(write: _Write, *, adds: bool) -> Value:
    size, count = write.base.shape[1], len(write.kept)
    if adds and not permutes(size, count):
        masks = _masks(write.kept, Cut.of(size, count))
        if masks.source.shape[1] <= MOST_OF_A_BLOCK:
            return _added(write, masks)
    return _permuted(write)


def _permuted(write: _Write) -> Value:
    """One gather from the tensor and the values beside it."""
    size = write.base.shape[1]
    places = np.arange(size)
    places[write.kept] = size + np.arange(len(write.kept))
    return take(jnp.concatenate([write.base, write.values], 1), places, 1)


@dataclass(frozen=True)
class _Masks:
    """Per block: which element each of its rows of zeros takes, the column that it goes to, and the row.

    Attributes:
        source: Elements ``(blocks, most)``; a block of fewer takes any in their place, and masks it.
        columns: 0/1, ``(blocks, most, width)``.
        rows: 0/1, ``(blocks, rows, most)``.
    """

    source: Array
    columns: Array
    rows: Array


def _masks(kept: Array, cut: Cut) -> _Masks:
    row, column = np.divmod(kept, cut.width)
    block, order = row % cut.blocks, np.argsort(row % cut.blocks, kind="stable")
    first = np.searchsorted(block[order], block[order])
    place = np.empty(len(kept), dtype=np.int64)
    place[order] = np.arange(len(kept)) - first
    most = int(place.max()) + 1
    source = np.zeros((cut.blocks, most), dtype=np.int32)
    columns = np.zeros((cut.blocks, most, cut.width), dtype=np.int32)
    rows = np.zeros((cut.blocks, cut.rows, most), dtype=np.int32)
    source[block, place] = np.arange(len(kept))
    columns[block, place, column] = 1
    rows[block, row // cut.blocks, place] = 1
    return _Masks(source, columns, rows)


def _added(write: _Write, masks: _Masks) -> Value:
    """What changes, spread over rows of zeros, and the rows put where they belong.

    The factors are 0 and 1, and the numbers' own integers are multiplied: nothing is truncated, nothing is sent, and
    the result is exact in a ring. In floating point it would not be: ``base + (value - base)`` rounds.
    """
    count, size = write.base.shape
    change = write.values - take(write.base, write.kept, 1)
    blocks, most, width = masks.columns.shape
    spread = _integers(take(change, masks.source.reshape(-1), 1)).reshape(count, blocks, most, 1) * masks.columns
    spread = spread.transpose(1, 2, 0, 3).reshape(blocks, most, count * width)
    placed = lax.dot_general(masks.rows, spread, (((2,), (1,)), ((0,), (0,))))
    placed = placed.reshape(blocks, -1, count, width).transpose(2, 1, 0, 3).reshape(count, -1)[:, :size]
    return write.base + _like(placed, write.base)


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
WRITTEN_BY_SUMS = Operator(functools.partial(_in_ring, adds=True), _obstacles)
#: The one for a ring of 32 bits, where the engine crashes in products of more than 96,000 multiplications.
WRITTEN_BY_A_GATHER = Operator(functools.partial(_in_ring, adds=False), _obstacles)
