"""Small ONNX files made by hand, for tests that need no compiler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}


def relu_net(
    path: Path, *, width: int = 8, polynomial: bool = False, batch: int | str = "batch", seed: int = 0,
    dtype: str = "float32", metadata: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Linear, ReLU or ``c1*h + c2*h*h``, linear; input ``x`` (batch, 4), output ``y`` (batch, 3)."""
    random = np.random.default_rng(seed)
    weights = {"w1": random.standard_normal((4, width)), "w2": random.standard_normal((width, 3))}
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"], name="fc1")]
    if polynomial:
        weights |= {"c1": np.full(width, 0.5), "c2": np.full(width, 0.1)}
        nodes += [
            helper.make_node("Mul", ["h", "h"], ["square"], name="relu/square"),
            helper.make_node("Mul", ["square", "c2"], ["quadratic"], name="relu/quadratic"),
            helper.make_node("Mul", ["h", "c1"], ["linear"], name="relu/linear"),
            helper.make_node("Add", ["quadratic", "linear"], ["r"], name="relu/sum"),
        ]
    else:
        nodes.append(helper.make_node("Relu", ["h"], ["r"], name="relu"))
    nodes.append(helper.make_node("MatMul", ["r", "w2"], ["y"], name="fc2"))
    tensors = {name: value.astype(dtype) for name, value in weights.items()}
    return save(path, nodes, {"x": (dtype, [batch, 4])}, {"y": (dtype, [batch, 3])}, tensors, metadata)


def save(
    path: Path, nodes: Sequence[Any], inputs: dict[str, tuple[str, list[Any]]],
    outputs: dict[str, tuple[str, list[Any]]], tensors: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write a graph."""
    infos = [
        [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name, (dtype, shape) in part.items()]
        for part in (inputs, outputs)
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (tensors or {}).items()]
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", *infos, weights), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def beside(path: Path, location: str = "model.onnx.data", *, seed: int = 0) -> Path:
    """The ReLU network with its weights in a file of its own."""
    relu_net(path, seed=seed)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    if location != "model.onnx.data":
        relocate(path, location)
    return path


def relocate(path: Path, location: str) -> None:
    """Let every tensor name another file."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
