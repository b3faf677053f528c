"""Several operations as one call, which sends as many messages as one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from autorep_fx.runtime.secure.joint import JointNode
from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.ops.linear import columns_of, folded, window_rows, with_bias
from autorep_fx.runtime.secure.ops.squares import square

__all__ = ["joint_operator"]


def joint_operator(node: JointNode, *, opened_once: bool) -> Operator:
    """The form of joint operations; squares among themselves open their factor once, where the protocol does."""
    operator = node.parts[0].operator
    if operator == "Conv":
        return _SUM_OF_CONVOLUTIONS
    if operator == "Relu":
        return _elementwise(lambda x: jnp.maximum(x, 0))
    if opened_once and all(len(set(part.inputs)) == 1 for part in node.parts):
        return _elementwise(lambda x, _: square(x))
    return _elementwise(lambda x, y: x * y)


def _elementwise(function: Callable[..., Value]) -> Operator:
    """A function of one element of each operand, on all elements of all parts beside each other."""

    def run(call: Call) -> Value:
        node: Any = call.node
        count = len(node.parts[0].inputs)
        operands = [call.args[start : start + count] for start in range(0, len(call.args), count)]
        shapes = [np.broadcast_shapes(*(np.shape(value) for value in values)) for values in operands]
        flat = [
            jnp.concatenate([jnp.broadcast_to(values[i], shape).reshape(-1)
                             for values, shape in zip(operands, shapes, strict=True)])
            for i in range(count)
        ]  # fmt: skip
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        made = jnp.split(function(*flat), ends[:-1].tolist())
        return tuple(part.reshape(shape) for part, shape in zip(made, shapes, strict=True))

    return Operator(run)


def _sum_of_convolutions(call: Call) -> Value:
    """One product: the windows of both beside each other, and their kernels below each other."""
    node: Any = call.node
    (x, kernel, bias), (other, other_kernel, other_bias) = call.args[:3], call.args[3:]
    columns, other_columns = call.laid_out(1), call.laid_out(4)
    rows, counts = window_rows(x, node.parts[0], kernel.shape[2:])
    other_rows, other_counts = window_rows(other, node.parts[1], other_kernel.shape[2:])
    if (len(x), len(kernel), counts) != (len(other), len(other_kernel), other_counts):  # the sum broadcasts
        one = with_bias(folded(rows @ columns, len(x), counts), bias)
        return one + with_bias(folded(other_rows @ other_columns, len(other), other_counts), other_bias)
    product = jnp.concatenate([rows, other_rows], 1) @ jnp.concatenate([columns, other_columns], 0)
    return with_bias(with_bias(folded(product, len(x), counts), bias), other_bias)


_SUM_OF_CONVOLUTIONS = Operator(_sum_of_convolutions, layouts={1: ("columns", columns_of), 4: ("columns", columns_of)})
