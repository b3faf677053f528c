"""What keeps a captured module from being exported, found out before any work is done on it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autorep_fx.passes.batch_statistics import batch_statistics
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.stages import largest_difference

__all__ = ["export_obstacles"]

# Largest difference, relative to the output, that rounding at another batch size may make in a deep network.
_ROUNDING = 1e-2


@torch.no_grad()
def export_obstacles(module: fx.GraphModule, inputs: ExampleInputs) -> list[str]:
    """One line per obstacle.

    1. A norm without running statistics.
    2. An output that is neither a tensor nor None, or has no batch axis.
    3. Samples that influence one another: the first gives another output alone than among others.

    Args:
        module: A captured, canonical or lowered module in eval mode.
        inputs: Samples.
    """
    found = batch_statistics(module)
    several = inputs.resized(max(3, inputs.size))
    outputs = several.call(module)
    leaves = pytree.tree_flatten_with_path(outputs)[0]
    found += [text for path, leaf in leaves if (text := _unfit(pytree.keystr(path), leaf, several.size))]
    if found:
        return found
    if _influence(module, inputs, outputs):
        # In float64 too: a deep network of polynomials can amplify rounding beyond any bound.
        exact = copy.deepcopy(module).double()
        several, inputs = several.to(dtype=torch.float64), inputs.to(dtype=torch.float64)
        if not _influence(exact, inputs, several.call(exact)):
            return []
        found.append("outputs of one sample depend on the other samples of its batch")
    return found


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
