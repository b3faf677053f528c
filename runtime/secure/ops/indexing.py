"""Gathers by public indices."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.ops.call import Call, Operator, Value

__all__ = ["OPERATORS", "public_indices", "row_of_indices", "take"]


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
    return take(call[0], public_indices(call[1]), call.attribute("axis", 0))


def _gather_elements(call: Call) -> Value:
    axis = call.attribute("axis", 0) % call[0].ndim
    if isinstance(call[0], np.ndarray):
        return np.take_along_axis(call[0], public_indices(call[1]), axis)
    return take(call[0], row_of_indices(public_indices(call[1]), call[0].shape, axis), axis)


def row_of_indices(indices: Array, shape: Sequence[int], axis: int) -> Array:
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


def public_indices(value: Value) -> Array:
    """Indices, which have to be known when a program is built."""
    if not isinstance(value, np.ndarray):
        raise TypeError("its indices depend on secret values")
    return value


OPERATORS = {
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
}
