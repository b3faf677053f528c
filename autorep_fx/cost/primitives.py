"""What a secure engine does at each node of an ONNX graph, in the operations that a protocol is made of.

All numbers of the model are secret, weights and polynomial coefficients too, so a product with one is a product of two
shared values and its result is truncated. A convolution is a product of matrices over its windows (im2col), or of every
pixel with all taps, where a protocol is charged less for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from autorep_fx.cost.convolutions import multiplies_first
from autorep_fx.cost.onnx_shapes import fixed_batch, infer_sample_shapes
from autorep_fx.errors import ConfigError, ModelFileError

__all__ = ["Primitive", "Work", "secure_work"]


@dataclass(frozen=True)
class Primitive:
    """One operation of a protocol on many elements at once.

    Attributes:
        operation: ``compare``, ``select`` (a bit times a value), ``product``, ``truncation`` or ``matmul``.
        result: Elements of the result.
        left: Elements of the first factor, for ``matmul``; every window of a convolution counts.
        right: Elements of the second factor, likewise.
        weight: Whether the second factor is a weight of the model, which a session opens once.
        steps: Into how many calls, one after another, it is split.
    """

    operation: str
    result: int
    left: int = 0
    right: int = 0
    weight: bool = False
    steps: int = 1


@dataclass(frozen=True)
class Work:
    """What one node takes.

    Attributes:
        name: Node name, which keeps the module path.
        operator: ONNX operator.
        inputs: Values it reads.
        outputs: Values it makes.
        primitives: In order; None where this table does not know the operator.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    primitives: tuple[Primitive, ...] | None


# Additions, and what moves values: no party sends anything.
_LOCAL = {
    "Add", "Sub", "Neg", "Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand",
    "Concat", "Split", "Slice", "Pad", "Gather", "ScatterElements", "ReduceSum", "Sum", "Cast", "Constant", "Shape",
}  # fmt: skip
_INTEGERS = {onnx.TensorProto.BOOL, onnx.TensorProto.INT32, onnx.TensorProto.INT64}


def secure_work(
    model: onnx.ModelProto, batch: int | None = None, *, protocol: str = "", ring_bits: int = 64
) -> list[Work]:
    """The operations of a protocol at every node, for one query.

    Args:
        model: A model; the values of its large weights are not needed. Free heights and widths are the example's.
        batch: Samples in the query; by default the model's own fixed batch, or 1.
        protocol: Name of the protocol, which decides the form of convolutions.
        ring_bits: Bits of its ring.

    Raises:
        ConfigError: The model's batch is fixed to another number.
        ModelFileError: A shape that is needed is unknown.
    """
    fixed = fixed_batch(model)
    if None not in (batch, fixed) and batch != fixed:
        raise ConfigError(
            f"The model takes {fixed} samples in a query and no other number.", received=f"batch {batch}",
            fix="Leave batch out, or export the model with a free batch.",
        )  # fmt: skip
    batch = batch or fixed or 1
    graph, shapes = infer_sample_shapes(model)
    types = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.output and types.get(node.output[0]) in _INTEGERS:
            continue  # shapes and positions are public
        primitives = _primitives(_Call(node, shapes, weights, batch, protocol, ring_bits))
        found.append(Work(node.name, node.op_type, tuple(node.input), tuple(node.output), primitives))
    return found


@dataclass(frozen=True)
class _Call:
    node: onnx.NodeProto
    shapes: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, onnx.TensorProto]
    batch: int
    protocol: str
    ring_bits: int

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value for one sample."""
        if name not in self.shapes:
            raise ModelFileError(
                f"The shape of {name!r} at node {self.node.name} ({self.node.op_type}) is unknown, so what it costs "
                "cannot be told.",
                fix="Run onnx.shape_inference, or export with static shapes but for the batch.",
            )
        return self.shapes[name]

    def elements(self, name: str) -> int:
        """Elements of a value in the whole query."""
        return math.prod(self.shape(name)) * (1 if name in self.weights else self.batch)

    @property
    def result(self) -> int:
        return self.elements(self.node.output[0])

    def attribute(self, name: str, default: Any) -> Any:
        return next((onnx.helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)


def _relu(call: _Call) -> tuple[Primitive, ...]:
    return Primitive("compare", call.result), Primitive("select", call.result)


def _clip(call: _Call) -> tuple[Primitive, ...]:
    """A maximum and a minimum; an open bound costs nothing."""
    return _relu(call) * sum(bool(name) for name in call.node.input[1:3])


def _max_pool(call: _Call) -> tuple[Primitive, ...]:
    """A tournament over the window."""
    whole = call.node.op_type == "GlobalMaxPool"
    window = (
        call.elements(call.node.input[0]) // call.result if whole else math.prod(call.attribute("kernel_shape", ()))
    )
    pairs, steps = call.result * (window - 1), math.ceil(math.log2(window)) if window > 1 else 0
    return Primitive("compare", pairs, steps=steps), Primitive("select", pairs, steps=steps)


def _product(call: _Call) -> tuple[Primitive, ...]:
    return Primitive("product", call.result), Primitive("truncation", call.result)


def _norm(call: _Call) -> tuple[Primitive, ...]:
    """A product with the scale and a sum; a scale of exactly 1 is how a sum per channel is exported."""
    scale, variance = (call.weights.get(call.node.input[i]) for i in (1, 4))
    if scale is None or variance is None:
        return _product(call)
    gamma, spread = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in (scale, variance))
    ones = (gamma / np.sqrt(spread + call.attribute("epsilon", 1e-5)) == 1).all()
    return () if ones else _product(call)


def _mean(call: _Call) -> tuple[Primitive, ...]:
    """A sum, and a product with the public number of its terms."""
    return (Primitive("truncation", call.result),)


def _conv(call: _Call) -> tuple[Primitive, ...]:
    groups = int(call.attribute("group", 1))
    channels, *kernel = call.shape(call.node.input[1])
    window = math.prod(kernel)  # channels of a group included
    weight = call.node.input[1] in call.weights
    truncation = Primitive("truncation", call.result)
    if multiplies_first(call.protocol, call.ring_bits, kernel[1:], call.attribute("strides", ())):
        opened = call.elements(call.node.input[0])
        products = opened // call.shape(call.node.input[0])[1] * math.prod(kernel[1:]) * channels
        return Primitive("matmul", products, opened, channels * window, weight), truncation
    pixels = call.result // channels
    return Primitive("matmul", call.result, pixels * window * groups, channels * window, weight), truncation


def _matmul(call: _Call) -> tuple[Primitive, ...]:
    left, right = call.node.input[:2]
    matmul = Primitive("matmul", call.result, call.elements(left), call.elements(right), right in call.weights)
    return matmul, Primitive("truncation", call.result)


_RULES: dict[str, Callable[[_Call], tuple[Primitive, ...]]] = {
    "Relu": _relu, "Clip": _clip, "MaxPool": _max_pool, "GlobalMaxPool": _max_pool, "Mul": _product,
    "BatchNormalization": _norm, "AveragePool": _mean, "GlobalAveragePool": _mean, "ReduceMean": _mean,
    "Conv": _conv, "Gemm": _matmul, "MatMul": _matmul,
}  # fmt: skip


def _primitives(call: _Call) -> tuple[Primitive, ...] | None:
    if call.node.op_type in _LOCAL:
        return ()
    rule = _RULES.get(call.node.op_type)
    return None if rule is None else rule(call)
