"""Shapes of the values of an ONNX graph, for one sample."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import onnx

from autorep_fx.cost.metadata import exported_metadata
from autorep_fx.cost.nominal import batch_axis, evaluate_text, per_sample
from autorep_fx.errors import ModelFileError

__all__ = ["fixed_batch", "infer_sample_shapes"]

Shapes = dict[str, tuple[int, ...]]


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The batch that an exported file was fixed to; None where it is free, or where the file does not tell."""
    stated = exported_metadata(model).get("batch")
    return None if stated is None else int(stated)


def infer_sample_shapes(model: onnx.ModelProto) -> tuple[onnx.GraphProto, Shapes]:
    """Infer shapes, at the example's heights and widths where these are free.

    Args:
        model: A model; the values of its large weights are not needed.

    Returns:
        The graph with inferred shapes, and value name → shape for one sample: 1 in place of every free axis, a fixed
        batch divided out. Values of unknown shape are left out.

    Raises:
        ModelFileError: An axis other than the first of an input is free: what it costs is not known.
    """
    sizes = json.loads(exported_metadata(model).get("sizes", "{}"))
    if sizes:
        model = _at_sizes(model, {name: int(size["example"]) for name, size in sizes.items()})
    _check_inputs(model.graph)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    batch = fixed_batch(model)
    shapes: Shapes = {}
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.HasField("shape"):
            stated = per_sample([_size(dimension) for dimension in info.type.tensor_type.shape.dim])
            shapes[info.name] = stated if batch is None else _of_one(stated, batch)
    return graph, shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _check_inputs(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    free = [
        f"{info.name}, axis {axis} ({dimension.dim_param or 'unknown'})"
        for info in graph.input if info.name not in weights
        for axis, dimension in enumerate(info.type.tensor_type.shape.dim)
        if axis and not dimension.HasField("dim_value")
    ]  # fmt: skip
    if free:
        raise ModelFileError(
            "Axes of the inputs beside the batch are free, so that nothing can be counted for one sample.",
            received="; ".join(free),
            fix="Export with static shapes but for the first axis, or set them with "
            "python -m onnxruntime.tools.make_dynamic_shape_fixed.",
        )


def _at_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The same graph with the example's heights and widths in place of their names, as far as shapes are stated."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sizes)) + r")\b")
    for info in (*result.graph.input, *result.graph.output, *result.graph.value_info):
        for dimension in info.type.tensor_type.shape.dim:
            if not pattern.search(dimension.dim_param):
                continue
            text = pattern.sub(lambda found: str(sizes[found[0]]), dimension.dim_param)
            number = evaluate_text(text) if not re.search("[A-Za-z_]", text) else None
            if number is None:
                dimension.dim_param = text
            else:
                dimension.dim_value = number
    return result


def _of_one(sizes: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """A shape with a fixed batch, for one sample."""
    at = batch_axis(sizes, batch)
    return tuple(size // batch if axis == at else size for axis, size in enumerate(sizes))


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int | str:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else dimension.dim_param or "batch"
