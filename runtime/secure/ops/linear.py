"""Products with weights, which are laid out once for the product that reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp

from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.windows import Windows, window_obstacles
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS", "columns_of", "folded", "window_rows", "with_bias"]


def columns_of(weight: Value, node: Node) -> Value:
    """A kernel ``(O, I/g, *k)`` as columns: ``(k·I, O)``, or ``(g, k·I/g, O/g)``."""
    groups, made = node.attributes.get("group", 1), weight.shape[0]
    rows = weight.reshape(groups, made // groups, weight.shape[1], -1).transpose(0, 3, 2, 1)
    rows = rows.reshape(groups, -1, made // groups)
    return rows[0] if groups == 1 else rows


def _unfolded(x: Value, node: Node, kernel: Sequence[int]) -> tuple[Value, tuple[int, ...]]:
    """The windows of a convolution's input ``(N, C, *S)``: ``(N, taps·C, *counts)``, and the counts.

    One tap's channels stand beside each other, so that each tap is one slice and nothing else.
    """
    windows = Windows.of(node, x.shape[2:], kernel)
    return jnp.concatenate(list(windows.slices(windows.pad(x, "constant"))), 1), windows.counts


def window_rows(x: Value, node: Node, kernel: Sequence[int]) -> tuple[Value, tuple[int, ...]]:
    """The windows of ``(N, C, *S)`` as rows ``(N·windows, taps·C)``, and how many there are along each axis."""
    unfolded, counts = _unfolded(x, node, kernel)
    terms = unfolded.shape[1]
    return unfolded.reshape(len(x), terms, -1).transpose(0, 2, 1).reshape(-1, terms), counts


def folded(product: Value, batch: int, counts: tuple[int, ...]) -> Value:
    """A product of windows and kernels ``(N·windows, O)`` as ``(N, O, *counts)``."""
    return product.reshape(batch, math.prod(counts), -1).transpose(0, 2, 1).reshape(batch, -1, *counts)


def with_bias(result: Value, bias: Value | None) -> Value:
    """``(N, O, *S)`` with a number per channel added, if there is one."""
    return result if bias is None else result + bias.reshape(1, -1, *[1] * (result.ndim - 2))


def _conv(call: Call) -> Value:
    """One product of unfolded windows and weights.

    It opens what the engine's own convolution opens, which unfolds too; but a weight that is opened once for a session
    has to be the very matrix that is multiplied.
    """
    x, columns, groups = call[0], call.laid_out(1), call.attribute("group", 1)
    kernel = call.attribute("kernel_shape") or list(call[1].shape[2:])
    if groups == 1:
        rows, counts = window_rows(x, call.node, kernel)
        result = folded(rows @ columns, len(x), counts)
    else:
        unfolded, counts = _unfolded(x, call.node, kernel)
        taps, of_group = math.prod(kernel), x.shape[1] // groups
        rows = unfolded.reshape(len(x), taps, groups, of_group, -1).transpose(2, 0, 4, 1, 3)
        rows = rows.reshape(groups, -1, taps * of_group)
        product = jnp.matmul(rows, columns).reshape(groups, len(x), math.prod(counts), -1).transpose(1, 0, 3, 2)
        result = product.reshape(len(x), -1, *counts)
    return with_bias(result, call[2])


def _right(weight: Value, node: Node) -> Value:
    return weight.T if node.attributes.get("transB", 0) else weight


def _gemm(call: Call) -> Value:
    left = call[0].T if call.attribute("transA", 0) else call[0]
    result = left @ call.laid_out(1)
    return result if call[2] is None else result + call[2]


OPERATORS = {
    "Conv": Operator(_conv, window_obstacles, {1: ("columns", columns_of)}),
    "Gemm": Operator(_gemm, layouts={1: ("right", _right)}),
    "MatMul": Operator(lambda call: call.xp.matmul(call[0], call[1])),
}
