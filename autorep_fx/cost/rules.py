"""Rules per ONNX operator: the operations of a protocol that one node takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from autorep_fx.cost.convolutions import multiplies_first
from autorep_fx.cost.squares import opens_once
from autorep_fx.cost.writes import Cut, most_at_random, permutes
from autorep_fx.errors import ModelFileError

__all__ = ["RULES", "Call", "Primitive", "local_work"]

# Passes over memory, as of a sum, that a product with a public 0/1 matrix and the sum with what it makes take.
_PASSES = 6


@dataclass(frozen=True)
class Primitive:
    """One operation of a protocol on many elements at once.

    Attributes:
        operation: ``compare``, ``select`` (a bit times a value), ``product``, ``square``, ``truncation`` or ``matmul``.
        result: Elements of the result.
        left: Elements of the first factor, for ``matmul``; every window of a convolution counts.
        right: Elements of the second factor, likewise.
        inner: Terms of every sum of a ``matmul``.
        weight: Whether the second factor is a weight of the model, which a session opens once.
        calls: Into how many equal calls, one after another, it is split.
    """

    operation: str
    result: int
    left: int = 0
    right: int = 0
    inner: int = 0
    weight: bool = False
    calls: int = 1

    @property
    def matrices(self) -> tuple[int, int, int]:
        """Rows, terms and columns of the product of matrices in each call."""
        return self.left // self.calls // self.inner, self.inner, self.right // self.calls // self.inner


@dataclass(frozen=True)
class Call:
    """One node, with what is known of its values, for one query.

    Attributes:
        node: The node.
        shapes: Value → shape for one sample.
        weights: Weights of the model.
        batch: Samples in the query.
        protocol: Name of the protocol, which decides the form of convolutions and squares.
        ring_bits: Bits of its ring.
    """

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

    @property
    def window(self) -> int:
        """Places of a window, without channels."""
        if self.node.op_type == "GlobalMaxPool":
            return self.elements(self.node.input[0]) // self.result
        kernel = self.shape(self.node.input[1])[2:] if self.node.op_type == "Conv" else ()
        return math.prod(kernel or self.attribute("kernel_shape", ()))

    @property
    def multiplies_first(self) -> bool:
        """Whether it is a convolution whose pixels meet all taps before they are shifted."""
        if self.node.op_type != "Conv":
            return False
        kernel = self.shape(self.node.input[1])[2:]
        return multiplies_first(self.protocol, self.ring_bits, kernel, self.attribute("strides", ()))

    def attribute(self, name: str, default: Any) -> Any:
        return next((onnx.helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)


def _relu(call: Call) -> tuple[Primitive, ...]:
    return Primitive("compare", call.result), Primitive("select", call.result)


def _clip(call: Call) -> tuple[Primitive, ...]:
    """A maximum and a minimum; an open bound costs nothing."""
    return _relu(call) * sum(bool(name) for name in call.node.input[1:3])


def _hard_sigmoid(call: Call) -> tuple[Primitive, ...]:
    """A product with a public number, a maximum and a minimum."""
    return Primitive("truncation", call.result), *_relu(call), *_relu(call)


def _hard_swish(call: Call) -> tuple[Primitive, ...]:
    return *_hard_sigmoid(call), Primitive("product", call.result), Primitive("truncation", call.result)


def _max_pool(call: Call) -> tuple[Primitive, ...]:
    """A tournament over the window: in every round half of what is left meets the other half."""
    rounds, left = [], call.window
    while left > 1:
        pairs = call.result * (left // 2)
        rounds += [Primitive("compare", pairs), Primitive("select", pairs)]
        left -= left // 2
    return tuple(rounds)


def _product(call: Call) -> tuple[Primitive, ...]:
    first, *others = call.node.input
    squares = others == [first] and first not in call.weights and opens_once(call.protocol)
    return Primitive("square" if squares else "product", call.result), Primitive("truncation", call.result)


def _norm(call: Call) -> tuple[Primitive, ...]:
    """A product with the scale and a sum; a scale of exactly 1 is how a sum per channel is exported."""
    scale, variance = (call.weights.get(call.node.input[i]) for i in (1, 4))
    if scale is None or variance is None:
        return _product(call)
    gamma, spread = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in (scale, variance))
    ones = (gamma / np.sqrt(spread + call.attribute("epsilon", 1e-5)) == 1).all()
    return () if ones else _product(call)


def _mean(call: Call) -> tuple[Primitive, ...]:
    """A sum, and a product with the public number of its terms."""
    return (Primitive("truncation", call.result),)


def _conv(call: Call) -> tuple[Primitive, ...]:
    groups = int(call.attribute("group", 1))
    channels, *kernel = call.shape(call.node.input[1])
    window = math.prod(kernel)  # channels of a group included
    weight = call.node.input[1] in call.weights
    if call.multiplies_first:
        opened = call.elements(call.node.input[0])
        products = opened // call.shape(call.node.input[0])[1] * call.window * channels
        matmul = Primitive("matmul", products, opened, channels * window, kernel[0], weight, groups)
        return matmul, Primitive("truncation", call.result)
    pixels = call.result // channels
    matmul = Primitive("matmul", call.result, pixels * window * groups, channels * window, window, weight, groups)
    return matmul, Primitive("truncation", call.result, calls=groups)


def _matmul(call: Call) -> tuple[Primitive, ...]:
    """A product of matrices; of two stacks of them, one after the other."""
    left, right = call.node.input[:2]
    weight, shape = right in call.weights, call.shape(right)
    inner = shape[-1 if call.attribute("transB", 0) else max(len(shape) - 2, 0)]
    stack = 1 if weight and len(shape) <= 2 else call.elements(left) // math.prod(call.shape(left)[-2:])
    matmul = Primitive("matmul", call.result, call.elements(left), call.elements(right), inner, weight, stack)
    return matmul, Primitive("truncation", call.result, calls=stack)


#: Operator → what it takes.
RULES: dict[str, Callable[[Call], tuple[Primitive, ...]]] = {
    "Relu": _relu, "Clip": _clip, "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish,
    "MaxPool": _max_pool, "GlobalMaxPool": _max_pool, "Mul": _product,
    "BatchNormalization": _norm, "AveragePool": _mean, "GlobalAveragePool": _mean, "ReduceMean": _mean,
    "Conv": _conv, "Gemm": _matmul, "MatMul": _matmul,
}  # fmt: skip


def local_work(call: Call) -> tuple[int, int, int]:
    """About how many calls a node takes that send nothing, elements of their results, and public indices of gathers."""
    if not call.node.output or call.node.output[0] not in call.shapes:
        return 1, 0, 0
    if call.multiplies_first:
        return 2 * call.window + 4, 3 * call.window * call.result, 0
    if call.node.op_type == "Conv":
        unfolded = call.result // call.shape(call.node.input[1])[0] * call.window * call.shape(call.node.input[0])[1]
        return call.window + 4, 2 * unfolded + call.result, 0
    if call.node.op_type in ("MaxPool", "AveragePool"):
        return 2 * call.window, 2 * call.window * call.result, 0
    if call.node.op_type == "ScatterElements":
        return _write(call.result // call.batch, call.elements(call.node.input[2]) // call.batch, call.batch)
    gathers = call.node.op_type in ("Gather", "GatherElements")
    return 1, call.result, call.result // call.batch if gathers else 0


def _write(size: int, written: int, batch: int) -> tuple[int, int, int]:
    """One gather of all elements, or a product for each block of them, which is one of many in a single operation."""
    if permutes(size, written):
        return 2, 2 * size * batch, size
    cut = Cut.of(size, written)
    placed = cut.blocks * most_at_random(written, cut)
    return cut.blocks // 4 + 8, (placed * cut.width + _PASSES * size) * batch, written + placed
