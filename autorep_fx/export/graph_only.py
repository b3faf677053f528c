"""The ONNX graph of a lowered module with what counts and costs need of its metadata, and nothing verified."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from autorep_fx.cost.metadata import METADATA
from autorep_fx.export.translate import translate
from autorep_fx.export.write import write_model
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.casts import cast_floating
from autorep_fx.passes.graphs import shared_copy
from autorep_fx.passes.inputs import ExampleInputs

__all__ = ["on_cpu", "shape_metadata", "write_graph"]


def shape_metadata(module: CapturedModule) -> dict[str, str]:
    """What a file says of free heights and widths, and of a fixed batch."""
    found = {}
    if module.sizes:
        found["sizes"] = json.dumps({size.name: size.to_json() for size in module.sizes})
    if module.fixed_batch is not None:
        found["batch"] = str(module.fixed_batch)
    return found


def write_graph(module: CapturedModule, example: ExampleInputs, path: Path, *, opset: int) -> None:
    """Write the graph of a module on the CPU, in float32, for what only reads the graph.

    Args:
        module: The lowered module.
        example: Inputs that it takes.
        path: Target file.
        opset: ONNX opset.

    Raises:
        UnsupportedModelError: ONNX has no form for it.
    """
    example = example.to(device="cpu", dtype=torch.float32).resized(max(2, example.size))
    model = translate(on_cpu(module, torch.float32), example, opset)
    model.metadata_props.update({METADATA + key: value for key, value in shape_metadata(module).items()})
    write_model(model, path)


def on_cpu(module: CapturedModule, dtype: torch.dtype) -> CapturedModule:
    """A copy in eval mode on the CPU and in ``dtype``, with the same tensors where they are so already."""
    tensors = (*module.parameters(), *module.buffers())
    typed = all(tensor.dtype == dtype or not tensor.is_floating_point() for tensor in tensors)
    there = typed and all(tensor.device.type == "cpu" for tensor in tensors)
    result = (shared_copy if there else copy.deepcopy)(module).cpu()
    if not typed:
        cast_floating(result, dtype)
    return result.eval()
