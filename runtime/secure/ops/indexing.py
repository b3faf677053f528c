"""Gathers by public indices, and the write-back of kept elements."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.zero import zero_like
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


def _write_back(call: Call) -> Value:
    """``ScatterElements(p, kept, v)`` as ``p + take(concat([v − p_kept, 0]), map)``.

    A scatter would become a loop over its elements in the engine. The map says for every position which element is
    written there, or that none is.
    """
    base, updates = call[0], call[2]
    indices, axis = _public(call[1]), call.attribute("axis", 0) % call[0].ndim
    row = np.moveaxis(indices, axis, -1).reshape(-1, indices.shape[axis])
    if indices.size and (row != row[0]).any():
        raise ValueError("its indices differ from row to row")
    if indices.shape[:axis] + indices.shape[axis + 1 :] != base.shape[:axis] + base.shape[axis + 1 :]:
        raise ValueError("its indices cover only some rows")
    kept = row[0] % base.shape[axis]
    if len(np.unique(kept)) != len(kept):
        raise ValueError("it writes one element twice")
    source = np.full(base.shape[axis], len(kept), dtype=np.int32)
    source[kept] = np.arange(len(kept), dtype=np.int32)
    difference = updates - take(base, kept, axis)
    nothing = jnp.broadcast_to(zero_like(base), [1 if a == axis else size for a, size in enumerate(base.shape)])
    return base + take(jnp.concatenate([difference, nothing], axis), source, axis)


def _write_back_obstacles(node: Node) -> list[str]:
    reduction = node.attributes.get("reduction", "none")
    return [] if reduction == "none" else [f"a reduction by {reduction!r}"]


def _public(value: Value) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError("its indices depend on secret values")
    return value


OPERATORS = {
    "Gather": Operator(_gather),
    "ScatterElements": Operator(_write_back, _write_back_obstacles),
}
