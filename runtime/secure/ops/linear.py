"""Products with weights, which are laid out once for the product that reads them."""

from __future__ import annotations

import math

import jax.numpy as jnp

from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.windows import Windows, window_obstacles
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS"]


def _columns(weight: Value, node: Node) -> Value:
    """A kernel ``(O, I/g, *k)`` as columns: ``(I/g·k, O)``, or ``(g, I/g·k, O/g)``."""
    groups = node.attributes.get("group", 1)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1).swapaxes(1, 2)
    return rows[0] if groups == 1 else rows


def _conv(call: Call) -> Value:
    """One product of unfolded windows and weights.

    It opens what the engine's own convolution opens, which unfolds too; but a weight that is opened once for a session
    has to be the very matrix that is multiplied.
    """
    x, columns, groups = call[0], call.laid_out(1), call.attribute("group", 1)
    kernel = call.attribute("kernel_shape") or list(call[1].shape[2:])
    windows = Windows.of(call.node, x.shape[2:], kernel)
    batch, channels, counts = x.shape[0], x.shape[1] // groups, windows.counts
    taps = list(windows.slices(windows.pad(x, "constant")))
    unfolded = jnp.stack(taps, 2).reshape(batch, groups, channels * len(taps), math.prod(counts))
    if groups == 1:
        rows = unfolded[:, 0].transpose(0, 2, 1).reshape(-1, channels * len(taps))
        product = (rows @ columns).reshape(batch, math.prod(counts), -1).transpose(0, 2, 1)
    else:
        rows = unfolded.transpose(1, 0, 3, 2).reshape(groups, -1, channels * len(taps))
        product = jnp.matmul(rows, columns).reshape(groups, batch, math.prod(counts), -1).transpose(1, 0, 3, 2)
    result = product.reshape(batch, -1, *counts)
    bias = call[2]
    return result if bias is None else result + bias.reshape(1, -1, *[1] * len(counts))


def _right(weight: Value, node: Node) -> Value:
    return weight.T if node.attributes.get("transB", 0) else weight


def _gemm(call: Call) -> Value:
    left = call[0].T if call.attribute("transA", 0) else call[0]
    result = left @ call.laid_out(1)
    return result if call[2] is None else result + call[2]


OPERATORS = {
    "Conv": Operator(_conv, window_obstacles, {1: ("columns", _columns)}),
    "Gemm": Operator(_gemm, layouts={1: ("right", _right)}),
    "MatMul": Operator(lambda call: call.xp.matmul(call[0], call[1])),
}
