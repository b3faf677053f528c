"""What onnxruntime's CPU kernels hold in blocks of channels."""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["in_blocks"]

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
        computed = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if node.target is aten.conv2d.default or (node.target in _IN_BLOCKS and found.issuperset(computed)):
            found.add(node)
    return found
