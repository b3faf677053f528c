"""What onnxruntime's CPU kernels hold in blocks of channels."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from torch import fx

__all__ = ["in_blocks", "stays_in_blocks"]

aten = torch.ops.aten
# What the kernels for blocks of channels compute; a view, a slice or a scatter needs the usual layout.
_IN_BLOCKS = (
    aten.add.Tensor, aten.mul.Tensor, aten.relu.default, aten.batch_norm.default, aten.cat.default,
    aten.max_pool2d.default, aten.avg_pool2d.default,
)  # fmt: skip


def in_blocks(module: fx.GraphModule) -> set[fx.Node]:
    """What onnxruntime has in blocks already: convolutions, and what is computed of nothing else."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if stays_in_blocks(node, found):
            found.add(node)
    return found


def stays_in_blocks(node: fx.Node, found: AbstractSet[fx.Node]) -> bool:
    """Whether a result is in blocks, given which of those before are."""
    if node.target is aten.conv2d.default:
        return True
    computed = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return node.target in _IN_BLOCKS and all(source in found for source in computed)
