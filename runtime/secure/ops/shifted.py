"""A convolution that multiplies first and shifts afterwards, so that each of its inputs is opened once."""

from __future__ import annotations

import math

import jax.numpy as jnp

from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.windows import Windows, window_obstacles
from autorep_fx.runtime.secure.public import Node

__all__ = ["SHIFTED_CONV"]

# A product of a fixed-point number with an integer is not truncated: weights are integers in units of 2⁻¹⁶, and the sum
# over all taps is truncated once, by a product with that unit. A smaller unit doubles the bytes of the truncation.
_UNIT = 2.0**-16


def _taps(weight: Value, node: Node) -> Value:
    """A kernel ``(O, I/g, *k)`` as integers with all taps beside each other: ``(I/g, T·O)`` or ``(g, I/g, T·O/g)``."""
    groups = node.attributes.get("group", 1)
    whole = jnp.rint(jnp.asarray(weight) / _UNIT).astype(jnp.int32)
    split = whole.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    rows = split.transpose(0, 2, 3, 1).reshape(groups, weight.shape[1], -1)
    return rows[0] if groups == 1 else rows


def _conv(call: Call) -> Value:
    """One product of all pixels with all taps, of which each is then shifted to its place."""
    x, rows, groups = call[0], call.laid_out(1), call.attribute("group", 1)
    kernel, made = call[1].shape[2:], call[1].shape[0]
    windows, taps = Windows.of(call.node, x.shape[2:], kernel), math.prod(kernel)
    batch, channels, *sizes = x.shape
    pixels = x.reshape(batch, groups, channels // groups, -1).transpose(1, 0, 3, 2)
    pixels = pixels.reshape(groups, -1, channels // groups)
    product = pixels[0] @ rows if groups == 1 else jnp.matmul(pixels, rows)
    product = product.reshape(groups, batch, -1, taps, made // groups)
    padded = windows.pad(product.transpose(3, 1, 0, 4, 2).reshape(taps * batch, made, *sizes), "constant")
    total = sum(windows.tap(padded, i, range(i * batch, (i + 1) * batch)) for i in range(taps))
    result = total * jnp.float32(_UNIT)
    bias = call[2]
    return result if bias is None else result + bias.reshape(1, -1, *[1] * len(sizes))


SHIFTED_CONV = Operator(_conv, window_obstacles, {1: ("taps", _taps)})
