"""What keeps a captured module from being exported, found out before any work is done on it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autorep_fx.cost.dependence import operator_name
from autorep_fx.passes.batch_statistics import batch_statistics
from autorep_fx.passes.casts import cast_floating
from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.graphs import FREE_AXES
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.source import location
from autorep_fx.passes.stages import largest_difference

__all__ = ["export_obstacles", "squeezed_batches"]

# Largest difference, relative to the output, that rounding at another batch size may make in a deep network.
_ROUNDING = 1e-2


@torch.no_grad()
def export_obstacles(module: fx.GraphModule, inputs: ExampleInputs) -> list[str]:
    """One line per obstacle.

    1. A norm without running statistics.
    2. An output that is neither a tensor nor None, or has no batch axis.
    3. Samples that influence one another: the first gives another output alone than among others. With a fixed batch
       that cannot be tried.
    4. With free heights and widths: adaptive pooling to more than one value, whose windows ONNX cannot compute.
    5. Complex numbers, and averages with a divisor of their own: ONNX has neither.
    6. ``squeeze()`` without axes, which takes the batch axis away too where the batch is 1.

    Args:
        module: A captured, canonical or lowered module in eval mode.
        inputs: Samples.
    """
    found = [*batch_statistics(module), *_adaptive_pools(module), *_without_form(module), *squeezed_batches(module)]
    several = inputs.resized(max(3, inputs.size))
    outputs = several.call(module)
    leaves = pytree.tree_flatten_with_path(outputs)[0]
    found += [text for path, leaf in leaves if (text := _unfit(pytree.keystr(path), leaf, several.size))]
    if found or inputs.fixed_batch:
        return found
    if _influence(module, inputs, outputs):
        # In float64 too: a deep network of polynomials can amplify rounding beyond any bound.
        exact = copy.deepcopy(module)
        cast_floating(exact, torch.float64)
        several, inputs = several.to(dtype=torch.float64), inputs.to(dtype=torch.float64)
        if not _influence(exact, inputs, several.call(exact)):
            return []
        found.append("outputs of one sample depend on the other samples of its batch")
    return found


def _adaptive_pools(module: fx.GraphModule) -> list[str]:
    found = []
    for node in module.graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        name = operator_name(node)
        if name.startswith("adaptive_") and FREE_AXES in source.meta:
            sides: Any = node.args[1]
            if any(side != 1 for side in (sides if isinstance(sides, (tuple, list)) else [sides])):
                where = location(node) or node.name
                found.append(
                    f"{name} ({where}) to {sides} has windows that depend on the height and width, "
                    "which ONNX cannot compute: pool to one value, or leave capture: {dynamic_size} off"
                )
    return found


def _without_form(module: fx.GraphModule) -> list[str]:
    found = []
    for node in module.graph.nodes:
        where, value = location(node) or node.name, node.meta.get("val")
        if isinstance(value, Tensor) and value.is_complex() and node.op == "call_function":
            found.append(f"{operator_name(node)} ({where}) makes complex numbers")
        elif operator_name(node) in ("avg_pool2d", "avg_pool3d") and argument(node, 6, "divisor_override"):
            found.append(f"{operator_name(node)} ({where}) has a divisor_override: multiply its result instead")
    return found


def squeezed_batches(module: fx.GraphModule) -> list[str]:
    """Calls of ``squeeze()`` that take the batch axis away where the batch is 1."""
    nodes = module.graph.find_nodes(op="call_function", target=torch.ops.aten.squeeze.default)
    return [
        f"squeeze() ({location(node) or node.name}) takes the batch axis away where the batch is 1: name the axes, "
        "squeeze((2, 3)), or write flatten(1)"
        for node in nodes if _batched(node.args[0])
    ]  # fmt: skip


def _batched(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() > 0 and not isinstance(value.shape[0], int)


def _influence(module: fx.GraphModule, inputs: ExampleInputs, outputs: Any) -> bool:
    """Whether the first sample gives another output alone than among others, whose ``outputs`` are."""
    alone = pytree.tree_leaves(inputs.resized(1).call(module))
    pairs = zip(alone, pytree.tree_leaves(outputs), strict=True)
    return any(
        not largest_difference(one, several[:1]) <= _ROUNDING for one, several in pairs if isinstance(several, Tensor)
    )


def _unfit(path: str, leaf: Any, size: int) -> str | None:
    if leaf is None:
        return None
    if not isinstance(leaf, Tensor):
        return f"output {path or 0} is of type {type(leaf).__name__}, not a tensor"
    if leaf.dim() == 0 or leaf.shape[0] != size:
        return f"output {path or 0} of shape {tuple(leaf.shape)} has no batch axis"
    return None
