"""Which numbers of an ONNX graph are secret: all that are floating-point, wherever they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autorep_fx.cost.joint import PART_OF_NORM
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.public import Node

__all__ = ["Lifted", "lift_numbers"]

# Attributes that only say what is usual; any other value of theirs is moved into the weights.
_NEUTRAL = {("Gemm", "alpha"): 1.0, ("Gemm", "beta"): 1.0, ("BatchNormalization", "momentum"): None}
_DIVIDING = {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization"}
# Numbers that every operation of the kind has, so that they tell nothing that its name does not.
_OF_THE_KIND = {("HardSigmoid", "alpha"): 1 / 6, ("HardSigmoid", "beta"): 0.5}
# What an operation has where it does not say: the defaults of ONNX, which are not those of torch.
_DEFAULTS = {"HardSigmoid": {"alpha": 0.2, "beta": 0.5}, "LeakyRelu": {"alpha": 0.01}}


@dataclass
class Lifted:
    """A graph whose numbers are apart.

    Attributes:
        nodes: Operations without numbers.
        constants: Integers by name.
        weights: Numbers by name, float32.
        obstacles: What could not be taken apart.
    """

    nodes: tuple[Node, ...] = ()
    constants: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


def lift_numbers(model: Any) -> Lifted:
    """Take the numbers out of a loaded ``onnx.ModelProto``.

    1. Floating-point initializers and constants are weights, in float32; integers and booleans are public.
    2. A number among an operation's attributes becomes a weight and a further input (the slope of a leaky ReLU), or is
       multiplied into a weight (``alpha`` and ``beta`` of Gemm).
    3. Batch norm that is not folded becomes a scale and a shift, computed here in float64.
    4. A clip's infinite bound is no bound.
    5. Weights that nothing reads are dropped.
    6. Operations have names of their own; ONNX lets several have one, or none.
    """
    return _Lifting(model).run()


class _Lifting:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.result = Lifted()
        self.nodes: list[Node] = []
        self._names: set[str] = set()

    def run(self) -> Lifted:
        from onnx import helper, numpy_helper

        for tensor in self.model.graph.initializer:
            self._store(tensor.name, numpy_helper.to_array(tensor))
        for index, proto in enumerate(self.model.graph.node):
            attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
            name = self._unique(proto.name or f"node_{index}")
            node = Node(name, proto.op_type, tuple(proto.input), tuple(proto.output))
            if proto.domain not in ("", "ai.onnx"):
                self.result.obstacles.append(f"{node.name}: {proto.domain}.{proto.op_type} is no ONNX operator")
            self._node(node, attributes)
        self.result.nodes = tuple(self.nodes)
        read = {name for node in self.nodes for name in node.inputs} | {v.name for v in self.model.graph.output}
        for store in (self.result.weights, self.result.constants):
            for name in [name for name in store if name not in read]:
                del store[name]
        return self.result

    def _unique(self, name: str) -> str:
        found, number = name, 1
        while found in self._names:
            found, number = f"{name}#{number + 1}", number + 1
        self._names.add(found)
        return found

    def _store(self, name: str, value: Array) -> None:
        if value.dtype.kind in "iub":
            self.result.constants[name] = value
        elif value.dtype.kind == "f":
            self.result.weights[name] = np.ascontiguousarray(value, dtype=np.float32)
        else:
            self.result.obstacles.append(f"{name!r} is {value.dtype}: neither a number nor an index")

    def _node(self, node: Node, attributes: dict[str, Any]) -> None:
        if node.operator == "Constant":
            self._constant(node, attributes)
        elif node.operator == "BatchNormalization" and self._fold_norm(node, attributes):
            pass
        else:
            self._check_finite(node)
            self.nodes.append(self._without_numbers(node, attributes))

    def _constant(self, node: Node, attributes: dict[str, Any]) -> None:
        from onnx import numpy_helper

        [(key, value)] = attributes.items()
        self._store(node.outputs[0], numpy_helper.to_array(value) if key == "value" else np.asarray(value))

    def _fold_norm(self, node: Node, attributes: dict[str, Any]) -> bool:
        """Rule 3; False where its statistics are no constants."""
        parts = [self.result.weights.get(name) for name in node.inputs[1:5]]
        if any(part is None for part in parts) or attributes.get("training_mode", 0):
            return False
        gamma, beta, mean, variance = (np.asarray(part, dtype=np.float64).reshape(-1, 1, 1) for part in parts)
        scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        rank = self._rank(node.inputs[0])
        x = node.inputs[0]
        # A scale of exactly 1 is how the export writes a sum per channel, which costs no product.
        if not (scale == 1).all():
            self._per_channel(f"{node.name}.scale", scale, rank)
            scaled = f"{node.outputs[0]}{PART_OF_NORM}"
            self.nodes.append(Node(f"{node.name}/scale", "Mul", (x, f"{node.name}.scale"), (scaled,)))
            x = scaled
        self._per_channel(f"{node.name}.shift", beta - mean * scale, rank)
        self.nodes.append(Node(f"{node.name}/shift", "Add", (x, f"{node.name}.shift"), (node.outputs[0],)))
        return True

    def _per_channel(self, name: str, value: Array, rank: int) -> None:
        self._store(name, value.reshape(-1, *[1] * (rank - 2)).astype(np.float32))

    def _rank(self, name: str) -> int:
        graph = self.model.graph
        infos = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
        return len(infos[name].type.tensor_type.shape.dim) if name in infos else 4

    def _without_numbers(self, node: Node, attributes: dict[str, Any]) -> Node:
        kept: dict[str, Any] = {}
        inputs = list(node.inputs)
        for key, value in {**_DEFAULTS.get(node.operator, {}), **attributes}.items():
            if isinstance(value, float) or (_is_list(value) and any(isinstance(item, float) for item in value)):
                self._number(node, key, value, inputs)
            elif isinstance(value, bytes):
                kept[key] = value.decode("utf-8", "replace")
            elif isinstance(value, int):
                kept[key] = value
            elif _is_list(value) and all(isinstance(item, int) for item in value):
                kept[key] = list(value)
            else:
                self.result.obstacles.append(f"{node.name} ({node.operator}): its attribute {key!r} is no integer")
        if node.operator == "Clip":
            inputs = [inputs[0], *("" if self._unbounded(name) else name for name in inputs[1:])]
        return Node(node.name, node.operator, tuple(inputs), node.outputs, kept)

    def _number(self, node: Node, key: str, value: Any, inputs: list[str]) -> None:
        """Rule 2."""
        neutral = (node.operator, key)
        if node.operator in _DIVIDING:
            self.result.obstacles.append(
                f"{node.name} ({node.operator}): the engine has no form for what divides by the deviation of its input"
            )
        elif neutral in _NEUTRAL:
            if _NEUTRAL[neutral] not in (None, value):
                self._scale_gemm(node, key, float(value), inputs)
        elif neutral in _OF_THE_KIND and np.float32(value) == np.float32(_OF_THE_KIND[neutral]):
            pass
        elif node.operator == "LeakyRelu" and key == "alpha":
            name = f"{node.name}.{key}"
            self._store(name, np.float32(value).reshape(1))
            inputs.append(name)
        else:
            self.result.obstacles.append(
                f"{node.name} ({node.operator}): its attribute {key!r} is a number, which would be public"
            )

    def _scale_gemm(self, node: Node, key: str, value: float, inputs: list[str]) -> None:
        index = {"alpha": 1, "beta": 2}[key]
        if index >= len(inputs):
            return
        weight = self.result.weights.get(inputs[index])
        if weight is None:
            self.result.obstacles.append(f"{node.name} (Gemm): {key} scales what is computed, not a weight")
            return
        inputs[index] = f"{node.name}.{key}_{inputs[index]}"
        self._store(inputs[index], np.asarray(weight, np.float64) * value)

    def _unbounded(self, name: str) -> bool:
        value = self.result.weights.get(name)
        return value is not None and value.size == 1 and bool(np.isinf(value).all())

    def _check_finite(self, node: Node) -> None:
        for name in node.inputs:
            value = self.result.weights.get(name)
            if value is not None and not np.isfinite(value).all() and node.operator != "Clip":
                self.result.obstacles.append(f"{node.name} ({node.operator}) reads {name!r}, which is not finite")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
