"""Norms that use the statistics of the batch: what they make of one sample depends on the others."""

from __future__ import annotations

import torch
from torch import fx

from autorep_fx.cost.dependence import input_dependent
from autorep_fx.passes.graphs import calls
from autorep_fx.passes.source import location, scope

__all__ = ["batch_statistics"]


def batch_statistics(module: fx.GraphModule) -> list[str]:
    """One obstacle to an export per such norm, of a module in eval mode."""
    dependent = input_dependent(module.graph.nodes)
    return [
        f"batch norm {scope(node)[0] or node.name} ({location(node) or 'source unknown'}) has no running statistics: "
        "outputs of one sample depend on the other samples of its batch"
        for node in calls(module, torch.ops.aten.batch_norm.default)
        if node.args[5] is True and node in dependent
    ]
