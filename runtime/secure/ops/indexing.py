"""Gathers by public indices, and the write-back of kept elements."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from autorep_fx.cost.writes import row_width
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS", "take"]


def take(value: Value, indices: Array, axis: int) -> Value:
    """Elements at public positions; of secret values, by one gather along one axis."""
    if isinstance(value, np.ndarray):
        return np.take(value, indices, axis=axis)
    axis %= value.ndim
    indices = np.where(indices < 0, indices + value.shape[axis], indices).astype(np.int32)
    if indices.size and not (indices.min() >= 0 and indices.max() < value.shape[axis]):
        raise ValueError(f"an index is outside of axis {axis}, which has {value.shape[axis]} elements")
    return jnp.take(value, indices, axis=axis, mode="clip")


def _gather(call: Call) -> Value:
    return take(call[0], _public(call[1]), call.attribute("axis", 0))


def _gather_elements(call: Call) -> Value:
    axis = call.attribute("axis", 0) % call[0].ndim
    if isinstance(call[0], np.ndarray):
        return np.take_along_axis(call[0], _public(call[1]), axis)
    return take(call[0], _of_every_row(_public(call[1]), call[0].shape, axis), axis)


def _of_every_row(indices: Array, shape: Sequence[int], axis: int) -> Array:
    """The indices along ``axis``, which are the same everywhere else."""
    if not indices.size:
        return np.zeros(0, indices.dtype)
    row = np.moveaxis(indices, axis, -1).reshape(-1, indices.shape[axis])
    if (row != row[0]).any():
        raise ValueError("its indices differ from row to row")
    if (*indices.shape[:axis], *indices.shape[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]):
        raise ValueError("its indices cover only some rows")
    first: Array = row[0]
    return first


def _write_back(call: Call) -> Value:
    """``ScatterElements(p, kept, v)``, of which the engine would make a loop over the elements.

    The axis is cut into rows, and the elements of ``v`` are dealt to the rows that they go to: one of each row in every
    turn. A turn gathers one value per row and lets a public mask choose between it and what is there, which is local.
    """
    base, updates = call[0], call[2]
    axis = call.attribute("axis", 0) % call[0].ndim
    before, size, after = base.shape[:axis], base.shape[axis], base.shape[axis + 1 :]
    kept = _of_every_row(_public(call[1]), base.shape, axis) % size
    if len(np.unique(kept)) != len(kept):
        raise ValueError("it writes one element twice")
    width = row_width(size, lambda width: int(np.bincount(kept // width).max()))
    result = base.reshape(*before, size // width, width, *after)
    for source, mask in _turns(kept, size // width, width):
        values = jnp.expand_dims(take(updates, source, axis), axis + 1)
        chosen = mask.reshape(*[1] * axis, *mask.shape, *[1] * len(after))
        result = jnp.where(chosen, values, result)
    return result.reshape(base.shape)


def _turns(kept: Array, rows: int, width: int) -> list[tuple[Array, Array]]:
    """Per turn which element goes to each row, any where none does, and the mask ``(rows, width)`` of where it goes."""
    order = np.argsort(kept, kind="stable")
    row, column = np.divmod(kept[order], width)
    turn = np.arange(len(kept)) - np.searchsorted(row, row)
    sources = np.zeros((turn.max() + 1, rows), dtype=np.int32)
    masks = np.zeros((*sources.shape, width), dtype=bool)
    sources[turn, row], masks[turn, row, column] = order, True
    return list(zip(sources, masks, strict=True))


def _write_back_obstacles(node: Node) -> list[str]:
    reduction = node.attributes.get("reduction", "none")
    return [] if reduction == "none" else [f"a reduction by {reduction!r}"]


def _public(value: Value) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError("its indices depend on secret values")
    return value


OPERATORS = {
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "ScatterElements": Operator(_write_back, _write_back_obstacles),
}
