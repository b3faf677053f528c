"""Nominal comparisons and multiplications of an ONNX graph, from the graph that runs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from autorep_fx.cost.nominal import ONNX_FAMILIES, family_comparisons
from autorep_fx.cost.onnx_shapes import infer_sample_shapes
from autorep_fx.errors import ModelFileError
from autorep_fx.kinds import KINDS

__all__ = ["NodeCount", "count_onnx", "load_model"]

_FLOATING = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16
}  # fmt: skip
# Elements above which the values of a weight are not kept: nothing that is counted depends on them.
_LARGE = 2**12
_RECURRENT = {"LSTM", "GRU", "RNN"}
# Their results are public whatever they are taken of.
_SIZES = {"Shape", "Size"}
_INTEGERS = {
    onnx.TensorProto.BOOL, onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32,
    onnx.TensorProto.INT64, onnx.TensorProto.UINT8,
}  # fmt: skip


@dataclass(frozen=True)
class NodeCount:
    """Nominal comparisons of one node for one sample.

    Attributes:
        name: Node name, which keeps the module path.
        operator: ONNX operator.
        comparisons: Nominal comparisons for one sample.
    """

    name: str
    operator: str
    comparisons: int


def load_model(path: Path | str) -> onnx.ModelProto:
    """Load and check an ONNX file, without the values of its large weights.

    Raises:
        ModelFileError: It is missing, not ONNX, or fails the checker.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", fix="Pass the path of an exported .onnx file.")
    try:
        onnx.checker.check_model(str(path))  # by its path: with weights beside it, it may be above 2 GiB
        whole = onnx.load(path, load_external_data=False)
        for tensor in whole.graph.initializer:
            _keep_small(tensor, path.parent)
        model = onnx.ModelProto()
        model.ParseFromString(whole.SerializeToString())  # what is dropped is freed with the message that held it
    except Exception as error:
        raise ModelFileError(
            f"{path} is not a valid ONNX model.", received=str(error).splitlines()[0], fix="Export it again."
        ) from error
    return model


def _keep_small(tensor: onnx.TensorProto, folder: Path) -> None:
    """Drop the values of a large floating-point matrix, and read any other tensor that is kept beside the file."""
    if tensor.data_type in _FLOATING and len(tensor.dims) > 1 and math.prod(tensor.dims) > _LARGE:
        tensor.ClearField("raw_data")
    elif onnx.external_data_helper.uses_external_data(tensor):
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT


def count_onnx(model: onnx.ModelProto) -> list[NodeCount]:
    """Comparisons of every node that has any, in graph order.

    Raises:
        ModelFileError: A shape that a count needs is unknown, or a subgraph hides nodes.
    """
    return _Counter(*infer_sample_shapes(model)).counts()


class _Counter:
    def __init__(self, graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> None:
        self.graph, self.shapes = graph, shapes
        self.types = {i.name: i.type.tensor_type.elem_type for i in (*graph.input, *graph.value_info, *graph.output)}
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.per_element = {operator: kind.comparisons for kind in KINDS.values() for operator in kind.onnx}
        self.constants: dict[str, onnx.TensorProto | None] = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute:
                value = node.attribute[0]
                self.constants[node.output[0]] = value.t if value.HasField("t") else None
        self.softplus_inputs = {node.input[0] for node in graph.node if node.op_type == "Softplus"}
        self.readers: defaultdict[str, set[str]] = defaultdict(set)
        for node in graph.node:
            for name in node.input:
                self.readers[name].add(node.op_type)

    def counts(self) -> list[NodeCount]:
        result = []
        for node in self.graph.node:
            if node.op_type in _RECURRENT:
                raise ModelFileError(
                    f"Node {node.name} ({node.op_type}) compares inside one operation, which cannot be counted.",
                    fix="Write the recurrence with single steps.",
                )
            if any(attribute.HasField("g") for attribute in node.attribute):
                raise ModelFileError(
                    f"Node {node.name} ({node.op_type}) holds a subgraph, whose runs cannot be counted.",
                    fix="Export the model without control flow.",
                )
            public = all(name in self.constants for name in node.input if name)
            if node.input and (public or node.op_type in _SIZES):
                self.constants.update(dict.fromkeys(node.output))  # computed from what is public: no cost
                continue
            number = self._comparisons(node)
            if number:
                result.append(NodeCount(node.name, node.op_type, number))
        return result

    def _comparisons(self, node: onnx.NodeProto) -> int:
        operator = node.op_type
        if not node.input or self._on_integers(node):
            return 0
        if operator == "Clip":
            return math.prod(self._shape(node, node.output[0])) * self._clip_sides(node)
        if operator in self.per_element:
            return math.prod(self._shape(node, node.output[0])) * self.per_element[operator]
        family = ONNX_FAMILIES.get(operator)
        if family is None or self._part_of_softplus(node):
            return 0
        inputs, output = self._shape(node, node.input[0]), self._shape(node, node.output[0])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if family == "cast" and attributes["to"] not in _INTEGERS:
            return 0
        window = math.prod(attributes.get("kernel_shape", ()))
        length = inputs[attributes.get("axis", -1 if family != "argmax" else 0)] if inputs else 1
        if family == "attention":
            length = self._shape(node, node.input[1])[-2]
            rows = inputs[:-1] if len(inputs) == 4 else (*inputs[:-1], attributes["q_num_heads"])
            inputs = (*rows, length)
        return family_comparisons(family, inputs, output, window=window, length=length)

    def _part_of_softplus(self, node: onnx.NodeProto) -> bool:
        """A softplus of torch is linear above a threshold: Softplus, Greater and Where, counted once."""
        if node.op_type != "Greater" or node.input[0] not in self.softplus_inputs:
            return False
        return self.readers[node.output[0]] == {"Where"}

    def _clip_sides(self, node: onnx.NodeProto) -> int:
        """1 where one of the bounds is absent or infinite."""
        sides = 0
        for name in node.input[1:3]:
            bound = self.constants.get(name)
            infinite = bound is not None and not math.isfinite(float(numpy_helper.to_array(bound)))
            sides += 1 if name and not infinite else 0
        return sides

    def _on_integers(self, node: onnx.NodeProto) -> bool:
        """Work on shapes and indices is public: it is no secure comparison."""
        return self.types.get(node.input[0], onnx.TensorProto.FLOAT) not in _FLOATING

    def _shape(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise ModelFileError(
                f"The shape of {name!r} at node {node.name} ({node.op_type}) is unknown, so its comparisons "
                "cannot be counted.",
                fix="Run onnx.shape_inference, or export with static shapes but for the batch.",
            )
        return self.shapes[name]
