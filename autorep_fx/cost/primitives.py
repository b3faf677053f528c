"""What a secure engine does at each node of an ONNX graph, in the operations that a protocol is made of.

All numbers of the model are secret, weights and polynomial coefficients too, so a product with one is a product of two
shared values and its result is truncated. A convolution is a product of matrices over its windows (im2col), or of every
pixel with all taps, where a protocol is charged less for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from autorep_fx.cost.onnx_shapes import fixed_batch, infer_sample_shapes
from autorep_fx.cost.rules import RULES, Call, Primitive, local_work
from autorep_fx.errors import ConfigError

__all__ = ["Work", "secure_work"]


@dataclass(frozen=True)
class Work:
    """What one node takes.

    Attributes:
        name: Node name, which keeps the module path.
        operator: ONNX operator.
        inputs: Values it reads.
        outputs: Values it makes.
        primitives: In order; None where this table does not know the operator.
        local_calls: About how many calls beside them, that send nothing.
        local_elements: Elements of the results of these.
        indices: Public indices of gathers among them.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    primitives: tuple[Primitive, ...] | None
    local_calls: int = 0
    local_elements: int = 0
    indices: int = 0


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
        call = Call(node, shapes, weights, batch, protocol, ring_bits)
        primitives = _primitives(call)
        local = local_work(call) if primitives is not None else (0, 0, 0)
        found.append(Work(node.name, node.op_type, tuple(node.input), tuple(node.output), primitives, *local))
    return found


def _primitives(call: Call) -> tuple[Primitive, ...] | None:
    if call.node.op_type in _LOCAL:
        return ()
    rule = RULES.get(call.node.op_type)
    return None if rule is None else rule(call)
