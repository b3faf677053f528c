"""Pooling and reductions over axes."""

from __future__ import annotations

import functools
import math
import operator

import jax.numpy as jnp
import numpy as np
from jax import lax

from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.windows import Windows, window_obstacles
from autorep_fx.runtime.secure.ops.zero import zero_like
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS"]


def _max_pool(call: Call) -> Value:
    """A tree of maxima: k² − 1 comparisons per window, in as few calls as the tree has levels.

    Padding repeats the border, which every window that reaches outside has an element of: minus infinity has no place
    in a ring.
    """
    windows = Windows.of(call.node, call[0].shape[2:], call.attribute("kernel_shape"))
    values = jnp.stack(list(windows.slices(windows.pad(call[0], "edge"))))
    while len(values) > 1:
        half = len(values) // 2
        largest = jnp.maximum(values[:half], values[half : 2 * half])
        values = jnp.concatenate([largest, values[2 * half :]]) if len(values) % 2 else largest
    return values[0]


def _max_pool_obstacles(node: Node) -> list[str]:
    problems = window_obstacles(node)
    dilated = any(step > 1 for step in node.attributes.get("dilations", ()))
    if dilated and (any(node.attributes.get("pads", ())) or node.attributes.get("ceil_mode", 0)):
        problems.append("dilation together with padding")
    if sum(bool(name) for name in node.outputs) > 1:
        problems.append("positions of the maxima")
    return problems


def _average_pool(call: Call) -> Value:
    """A sum over each window, which is local, and one product with a public number."""
    windows = Windows.of(call.node, call[0].shape[2:], call.attribute("kernel_shape"))
    total = functools.reduce(operator.add, windows.slices(windows.pad(call[0], "constant")))
    if windows.padded and not call.attribute("count_include_pad", 0):
        return total * (np.float32(1) / windows.inside(call[0].shape[2:]))
    return total * np.float32(1 / math.prod(windows.kernel))


def _average_pool_obstacles(node: Node) -> list[str]:
    problems = window_obstacles(node)
    if node.attributes.get("ceil_mode", 0) and node.attributes.get("count_include_pad", 0):
        problems.append("ceil_mode together with count_include_pad")
    return problems


def _global_average(call: Call) -> Value:
    return _mean(call[0], tuple(range(2, call[0].ndim)), keep=True)


def _reduce(call: Call, *, mean: bool) -> Value:
    axes = call.integers(1, "axes")
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return call[0]
        axes = list(range(call[0].ndim))
    keep = bool(call.attribute("keepdims", 1))
    if isinstance(call[0], np.ndarray):
        return np.asarray((np.mean if mean else np.sum)(call[0], axis=tuple(axes), keepdims=keep), call[0].dtype)
    return (_mean if mean else _sum)(call[0], tuple(axes), keep=keep)


def _mean(value: Value, axes: tuple[int, ...], *, keep: bool) -> Value:
    """A product with a public number: a division would be computed in the engine."""
    count = math.prod(value.shape[axis] for axis in axes)
    return _sum(value, axes, keep=keep) * np.float32(1 / count)


def _sum(value: Value, axes: tuple[int, ...], *, keep: bool) -> Value:
    total = lax.reduce(value, zero_like(value), lax.add, [axis % value.ndim for axis in axes])
    return jnp.expand_dims(total, axes) if keep else total


OPERATORS = {
    "AveragePool": Operator(_average_pool, _average_pool_obstacles),
    "GlobalAveragePool": Operator(_global_average),
    "MaxPool": Operator(_max_pool, _max_pool_obstacles),
    "ReduceMean": Operator(functools.partial(_reduce, mean=True)),
    "ReduceSum": Operator(functools.partial(_reduce, mean=False)),
}
