"""Shapes: local at every party, and computed when the program is built where they are of integers."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.zero import zero_like
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS"]

_LARGEST = 2**31


def _shape(call: Call) -> Value:
    sizes = np.array(np.shape(call[0]), dtype=np.int64)
    return sizes[slice(call.attribute("start", 0), call.attribute("end"))]


def _reshape(call: Call) -> Value:
    wanted = call.integers(1) or []
    if not call.attribute("allowzero", 0):
        wanted = [call[0].shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return call[0].reshape(wanted)


def _flatten(call: Call) -> Value:
    axis = call.attribute("axis", 1)
    return call[0].reshape(math.prod(call[0].shape[:axis]), -1)


def _squeeze(call: Call) -> Value:
    axes = call.integers(1, "axes")
    return call.xp.squeeze(call[0], None if axes is None else tuple(axes))


def _unsqueeze(call: Call) -> Value:
    return call.xp.expand_dims(call[0], tuple(call.integers(1, "axes") or ()))


def _concat(call: Call) -> Value:
    return call.xp.concatenate(list(call.args), axis=call.attribute("axis"))


def _slice(call: Call) -> Value:
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4) or [1] * len(starts)
    bounds = [slice(None)] * call[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if abs(end) >= _LARGEST else end
        bounds[axis] = slice(start, stop, step)
    if isinstance(call[0], np.ndarray):
        return call[0][tuple(bounds)]
    ranges = [bound.indices(size) for bound, size in zip(bounds, call[0].shape, strict=True)]
    if any(step < 1 for _, _, step in ranges):
        raise ValueError("slices of secret values go forwards")
    low = [start for start, _, _ in ranges]
    return lax.slice(call[0], low, [max(start, stop) for start, stop, _ in ranges], [step for _, _, step in ranges])


def _split(call: Call) -> Value:
    axis, count = call.attribute("axis", 0), len(call.node.outputs)
    parts = call.integers(1, "split") or _even(call[0].shape[axis], count)
    return tuple(call.xp.split(call[0], np.cumsum(parts)[:-1].tolist(), axis=axis))


def _even(size: int, count: int) -> list[int]:
    part = -(-size // count)
    return [min(part, size - part * index) for index in range(count)]


def _expand(call: Call) -> Value:
    shape = np.broadcast_shapes(call[0].shape, tuple(call.integers(1) or ()))
    return call.xp.broadcast_to(call[0], shape)


def _transpose(call: Call) -> Value:
    return call.xp.transpose(call[0], call.attribute("perm"))


def _pad(call: Call) -> Value:
    """With any other number than zero, that is a secret weight."""
    pads = call.integers(1, "pads") or []
    axes = call.integers(3) or list(range(call[0].ndim))
    axes = [axis % call[0].ndim for axis in axes]
    low, high = [0] * call[0].ndim, [0] * call[0].ndim
    for position, axis in enumerate(axes):
        low[axis], high[axis] = pads[position], pads[position + len(axes)]
    value = zero_like(call[0]) if call[2] is None else jnp.reshape(call[2], ())
    return lax.pad(call[0], value, [(a, b, 0) for a, b in zip(low, high, strict=True)])


def _pad_obstacles(node: Node) -> list[str]:
    mode = node.attributes.get("mode", "constant")
    return [] if mode == "constant" else [f"padding by {mode!r}"]


OPERATORS = {
    "Concat": Operator(_concat),
    "Dropout": Operator(lambda call: call[0]),
    "Expand": Operator(_expand),
    "Flatten": Operator(_flatten),
    "Pad": Operator(_pad, _pad_obstacles),
    "Reshape": Operator(_reshape),
    "Shape": Operator(_shape),
    "Slice": Operator(_slice),
    "Split": Operator(_split),
    "Squeeze": Operator(_squeeze),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_unsqueeze),
}
