"""What a secure engine does at each node of an ONNX graph, in the operations that a protocol is made of.

All numbers of the model are secret, weights and polynomial coefficients too, so a product with one is a product of two
shared values and its result is truncated. A convolution is a product of matrices over its windows (im2col), or of every
pixel with all taps, where a protocol is charged less for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from autorep_fx.cost.joint import Group, arranged
from autorep_fx.cost.metadata import require_any_engine
from autorep_fx.cost.onnx_shapes import fixed_batch, infer_sample_shapes
from autorep_fx.cost.rules import RULES, Call, Primitive, local_work
from autorep_fx.errors import ConfigError

__all__ = ["Work", "secure_work"]


@dataclass(frozen=True)
class Work:
    """What one node takes, or several that run as one call.

    Attributes:
        name: Node name, which keeps the module path; of several, the first's.
        operator: ONNX operator.
        inputs: Values it reads.
        outputs: Values it makes.
        primitives: In order; None where this table does not know the operator.
        local_calls: About how many calls beside them, that send nothing.
        local_elements: Elements of the results of these.
        indices: Public indices of gathers among them.
        nodes: How many run as one call; of two convolutions and their sum, two.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    primitives: tuple[Primitive, ...] | None
    local_calls: int = 0
    local_elements: int = 0
    indices: int = 0
    nodes: int = 1

    @property
    def title(self) -> str:
        """The operator, with the number of nodes where there are several."""
        return self.operator if self.nodes == 1 else f"{self.nodes} {self.operator}"


# Additions, and what moves values: no party sends anything.
_LOCAL = {
    "Add", "Sub", "Neg", "Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand",
    "Concat", "Split", "Slice", "Pad", "Gather", "GatherElements", "ScatterElements", "ReduceSum", "Sum", "Cast",
    "Constant", "Shape",
}  # fmt: skip
_INTEGERS = {onnx.TensorProto.BOOL, onnx.TensorProto.INT32, onnx.TensorProto.INT64}


def secure_work(
    model: onnx.ModelProto, batch: int | None = None, *, protocol: str = "", ring_bits: int = 64
) -> list[Work]:
    """The operations of a protocol at every node, for one query.

    Args:
        model: A model; the values of its large weights are not needed. Free heights and widths are the example's.
        batch: Samples in the query; by default the model's own fixed batch, or 1.
        protocol: Name of the protocol, which decides the form of convolutions and what runs as one call.
        ring_bits: Bits of its ring.

    Raises:
        ConfigError: The model's batch is fixed to another number.
        ModelFileError: A shape that is needed is unknown, or the file is for onnxruntime alone.
    """
    require_any_engine(model)
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
    inputs = [info.name for info in graph.input if info.name not in weights]
    integers = {name for name, kind in types.items() if kind in _INTEGERS}
    calls = [Call(node, shapes, weights, batch, protocol, ring_bits) for node in graph.node]
    groups = arranged(
        [_Step.of(node) for node in graph.node], inputs, [info.name for info in graph.output], protocol=protocol,
        ring_bits=ring_bits, integers=integers,
    )  # fmt: skip
    return [
        _work(group, [calls[place] for place in group.places]) for group in groups
        if (made := graph.node[group.places[-1]].output) and made[0] not in integers  # shapes and positions are public
    ]  # fmt: skip


@dataclass(frozen=True)
class _Step:
    """What :func:`arranged` reads of a node."""

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, node: onnx.NodeProto) -> _Step:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return cls(node.op_type, node.input, node.output, attributes)


def _work(group: Group, calls: Sequence[Call]) -> Work:
    """One node, or several as one call."""
    parts = [_alone(call) for call in (calls[:-1] if group.summed else calls)]
    if len(parts) == 1:
        return parts[0]
    same_sizes = len({tuple(call.shape(call.node.output[0])) for call in calls}) == 1
    return Work(
        parts[0].name, parts[0].operator, tuple(name for part in parts for name in part.inputs),
        tuple(calls[-1].node.output) if group.summed else tuple(name for part in parts for name in part.outputs),
        _together([part.primitives or () for part in parts], summed=group.summed, same_sizes=same_sizes),
        sum(part.local_calls + 2 for part in parts),
        sum(part.local_elements for part in parts) * (1 if group.summed else 2),
        sum(part.indices for part in parts), len(parts),
    )  # fmt: skip


def _together(parts: Sequence[tuple[Primitive, ...]], *, summed: bool, same_sizes: bool) -> tuple[Primitive, ...]:
    """The operations of several nodes as those of one: on all their elements, or on the terms of all for one result."""
    if summed and not same_sizes:
        return tuple(primitive for part in parts for primitive in part)
    found = []
    for same in zip(*parts, strict=True):
        result = same[0].result if summed else sum(one.result for one in same)
        left, right, inner = (sum(getattr(one, name) for one in same) for name in ("left", "right", "inner"))
        found.append(replace(same[0], result=result, left=left, right=right, inner=inner))
    return tuple(found)


def _alone(call: Call) -> Work:
    primitives = _primitives(call)
    local = local_work(call) if primitives is not None else (0, 0, 0)
    node = call.node
    return Work(node.name, node.op_type, tuple(node.input), tuple(node.output), primitives, *local)


def _primitives(call: Call) -> tuple[Primitive, ...] | None:
    if call.node.op_type in _LOCAL:
        return ()
    rule = RULES.get(call.node.op_type)
    return None if rule is None else rule(call)
