"""Shapes of the values of an ONNX graph, for one sample."""

from __future__ import annotations

import onnx

from autorep_fx.cost.nominal import per_sample

__all__ = ["sample_shapes"]


def sample_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Value name → shape with 1 in place of every free axis; values of unknown shape are left out.

    Args:
        graph: A graph whose shapes were inferred.
    """
    found = {
        info.name: per_sample([d.dim_value if d.HasField("dim_value") else d.dim_param for d in shape.dim])
        for info in (*graph.input, *graph.output, *graph.value_info)
        if info.type.tensor_type.HasField("shape") and (shape := info.type.tensor_type.shape) is not None
    }
    return found | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
