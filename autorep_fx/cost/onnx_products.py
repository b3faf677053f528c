"""Products of an ONNX graph: between values, which secure computation pays for."""

from __future__ import annotations

import math

import onnx

from autorep_fx.cost.onnx_shapes import infer_sample_shapes

__all__ = ["count_products"]

# Their results are public, whatever they are taken of.
_PUBLIC = {"Shape", "Size"}
_MATRIX = {"MatMul", "Gemm"}
# Products between values that are not counted here; a graph that has one has no number.
_OTHER = {
    "Einsum", "Pow", "Attention", "LSTM", "GRU", "RNN", "If", "Loop", "Scan", "ReduceProd", "Conv", "ConvTranspose",
    "ReduceSumSquare", "ReduceL2", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
    "RMSNormalization",
}  # fmt: skip


def count_products(model: onnx.ModelProto) -> int | None:
    """Products of two values that both depend on the input, for one sample.

    Args:
        model: A model; the values of its weights are not needed.

    Returns:
        The number; None where the graph does not tell it: an unknown shape, or an operation with products inside.
    """
    graph, shapes = infer_sample_shapes(model)
    weights = {tensor.name for tensor in graph.initializer}
    secret = {info.name for info in graph.input if info.name not in weights}
    total = 0
    for node in graph.node:
        if not any(name in secret for name in node.input) or node.op_type in _PUBLIC:
            continue
        secret.update(node.output)
        number = _products(node, secret, shapes)
        if number is None:
            return None
        total += number
    return total


def _products(node: onnx.NodeProto, secret: set[str], shapes: dict[str, tuple[int, ...]]) -> int | None:
    factors = [name for name in node.input[:2] if name in secret]
    if node.op_type in _OTHER:
        linear = node.op_type in ("Conv", "ConvTranspose") and len(factors) == 1
        power = node.op_type == "Pow" and len(factors) == 0
        return 0 if linear or power else None
    if node.op_type not in _MATRIX and node.op_type != "Mul":
        return 0
    if len(factors) < 2:
        return 0
    if node.output[0] not in shapes or node.input[0] not in shapes:
        return None
    inner = 1
    if node.op_type in _MATRIX:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = shapes[node.input[0]][-2 if transposed else -1]
    return math.prod(shapes[node.output[0]]) * inner
