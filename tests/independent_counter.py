"""Counts nominal comparisons in an ONNX file, independently: it knows nothing of the project.

Every symbolic size is set to 1 (one sample), shapes are inferred anew, and each operator is counted by the
convention of the papers: one per element of an activation, two where it clips on two sides, window − 1 per output of
a max pool, n − 1 per maximum of n. An integer part, an equality and a truth value taken of numbers are one each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

ONE_PER_ELEMENT = {
    "Abs", "Ceil", "Celu", "Elu", "Equal", "Erf", "Floor", "Gelu", "Greater", "GreaterOrEqual", "LeakyRelu", "Less",
    "LessOrEqual", "Max", "Min", "Mish", "Mod", "PRelu", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
    "Swish", "Tanh",
}  # fmt: skip
TWO_PER_ELEMENT = {"HardSigmoid", "HardSwish"}
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
MAXIMA = {"GlobalMaxPool", "ReduceMax", "ReduceMin", "ReduceLogSumExp"}
MAXIMA_ALONG_AN_AXIS = {"ArgMax": 0, "ArgMin": 0, "LogSoftmax": -1, "Softmax": -1}
# Operators that compare nothing secret. What is in no list is an error, so that nothing is overlooked.
FREE = {
    "Add", "And", "AveragePool", "BatchNormalization", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "Cos", "CumSum", "Div", "Exp", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Gemm", "GlobalAveragePool", "GroupNormalization", "Identity", "InstanceNormalization", "IsInf", "IsNaN",
    "LayerNormalization", "Log", "MatMul", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "Range", "Reciprocal",
    "ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize", "ScatterElements",
    "ScatterND", "Shape", "Sin", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose",
    "Trilu", "Unsqueeze", "Where",
}  # fmt: skip


def count(path: Path | str) -> int:
    """Nominal comparisons for one sample.

    Raises:
        ValueError: An operator that this counter does not know, or a shape that stays unknown.
    """
    return sum(by_node(path).values())


def by_node(path: Path | str) -> dict[str, int]:
    """The same by the first output of each node that compares."""
    graph = _Graph(_one_sample(onnx.load(str(path))).graph)
    result = {}
    for node in graph.proto.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ValueError(f"How often the subgraph of the operator {node.op_type} runs is unknown.")
        secret = [name for name in node.input if name and name not in graph.public]
        if node.op_type in FREE or not secret or not graph.holds_floats(node.input[0]):
            continue
        if _belongs_to_a_softplus(graph.proto, node):
            continue
        number = _comparisons(node, graph.shape, graph.constants)
        if number:
            result[node.output[0]] = number
    return result


def by_output(path: Path | str, names: list[str], counts: dict[str, int]) -> dict[str, int]:
    """Counts by node name or first output, summed over the nodes that lead to each output.

    Args:
        path: The file.
        names: What its outputs are called in the result, in order; those of one name are added.
        counts: Comparisons by the name of a node or of its first output.
    """
    graph = onnx.load(str(path)).graph
    maker = {output: node for node in graph.node for output in node.output}
    result = dict.fromkeys(names, 0)
    seen: set[str] = set()
    for name, output in zip(names, graph.output, strict=True):
        queue = [output.name]
        while queue:
            node = maker.get(queue.pop())
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            result[name] += counts.get(node.name, 0) + counts.get(node.output[0], 0)
            queue += node.input
    return result


class _Graph:
    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.values = {v.name: v.type.tensor_type for v in (*proto.input, *proto.value_info, *proto.output)}
        self.constants = {t.name: numpy_helper.to_array(t) for t in proto.initializer}
        for node in proto.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.public = set(self.constants)
        for node in proto.node:
            if node.op_type in ("Shape", "Size") or (node.input and all(n in self.public for n in node.input if n)):
                self.public.update(node.output)

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.constants:
            return tuple(self.constants[name].shape)
        value = self.values.get(name)
        dims = value.shape.dim if value is not None and value.HasField("shape") else None
        if dims is None or not all(d.HasField("dim_value") for d in dims):
            raise ValueError(f"The shape of {name} is unknown.")
        return tuple(d.dim_value for d in dims)

    def holds_floats(self, name: str) -> bool:
        if name in self.constants:
            return bool(np.issubdtype(self.constants[name].dtype, np.floating))
        if name not in self.values:
            raise ValueError(f"The type of {name} is unknown.")
        return self.values[name].elem_type in FLOATS


def _one_sample(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if any(dim.dim_param and not dim.dim_param.isidentifier() for dim in dims):
            value.type.tensor_type.ClearField("shape")  # a multiple of the batch: inferred like the rest
        for dim in dims:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    del model.graph.value_info[:]
    return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _comparisons(
    node: onnx.NodeProto, shape: Callable[[str], tuple[int, ...]], constants: dict[str, np.ndarray]
) -> int:
    operator = node.op_type
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    taken, given = math.prod(shape(node.input[0])), math.prod(shape(node.output[0]))
    if operator in ONE_PER_ELEMENT:
        return given
    if operator in TWO_PER_ELEMENT:
        return 2 * given
    if operator == "Clip":
        bounds = [constants.get(name, np.zeros(())) for name in node.input[1:3] if name]
        return given * sum(bool(np.isfinite(bound).all()) for bound in bounds)
    if operator == "Cast":
        return 0 if attributes["to"] in FLOATS else given
    if operator == "ReduceL1":
        return taken
    if operator == "MaxPool":
        return given * (math.prod(attributes["kernel_shape"]) - 1)
    if operator in MAXIMA:
        return taken - given
    if operator in MAXIMA_ALONG_AN_AXIS:
        length = shape(node.input[0])[attributes.get("axis", MAXIMA_ALONG_AN_AXIS[operator])]
        return taken // length * (length - 1)
    if operator == "TopK":
        axis = attributes.get("axis", -1)
        length, k = shape(node.input[0])[axis], shape(node.output[0])[axis]
        return taken // length * sum(length - 1 - i for i in range(k))
    raise ValueError(f"This counter does not know the operator {operator}.")


def _belongs_to_a_softplus(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """PyTorch's softplus selects by a threshold what is linear: one activation, not two."""
    if node.op_type != "Greater":
        return False
    partners = [other for other in graph.node if other.op_type == "Softplus" and other.input[0] == node.input[0]]
    readers = {other.op_type for other in graph.node if node.output[0] in other.input}
    return bool(partners) and readers == {"Where"}
