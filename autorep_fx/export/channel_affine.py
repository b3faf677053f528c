"""Scales and shifts per channel in the form that onnxruntime computes without leaving its blocked layout.

Its CPU kernels for convolutions keep images in blocks of channels. A product or a sum with a constant per channel is
computed in the usual layout, so that every such step costs two conversions of the whole tensor; a batch norm in
inference form stays in blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.export.blocks import in_blocks
from autorep_fx.passes.graphs import add_buffer, node_shape
from autorep_fx.passes.linear_ops import constant_of

__all__ = ["with_channel_norms"]

aten = torch.ops.aten
_HOLDER = "autorep_norms"


def with_channel_norms(module: fx.GraphModule) -> None:
    """Turn ``x + shift`` and ``x · scale + shift`` of images into batch norms whose variance is exactly 1.

    In the usual layout a sum is the faster form: it runs on all threads, a batch norm on one.
    """
    modified, blocked = False, in_blocks(module)
    for node in list(module.graph.nodes):
        shift = _per_channel(module, node, aten.add.Tensor)
        if shift is None:
            continue
        source: Any = node.args[0]
        scale = _per_channel(module, source, aten.mul.Tensor) if len(source.users) == 1 else None
        x: Any = source if scale is None else source.args[0]
        if node_shape(x) != node_shape(node) or x not in blocked:
            continue
        blocked.add(_replace(module, node, x, torch.ones_like(shift) if scale is None else scale, shift))
        modified = True
    if modified:
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()


def _per_channel(module: fx.GraphModule, node: fx.Node, target: Any) -> Tensor | None:
    """The constant, ``(C,)``, of a sum or product of an image ``(N, C, H, W)`` with ``(C, 1, 1)``."""
    if node.target is not target or node.kwargs or len(node.args) != 2:
        return None
    shape, constant = node_shape(node), constant_of(module, node.args[1])
    if shape is None or len(shape) != 4 or constant is None or tuple(constant.shape) != (shape[1], 1, 1):
        return None
    return constant.flatten()


def _replace(module: fx.GraphModule, node: fx.Node, x: fx.Node, scale: Tensor, shift: Tensor) -> fx.Node:
    values = {"scale": scale, "shift": shift, "mean": torch.zeros_like(shift), "variance": torch.ones_like(shift)}
    with module.graph.inserting_before(node):
        constants = [
            module.graph.get_attr(add_buffer(module, f"{_HOLDER}.{node.name}.{name}", value.clone()))
            for name, value in values.items()
        ]
        norm = module.graph.call_function(aten.batch_norm.default, (x, *constants, False, 0.0, 0.0, False))
    norm.meta = dict(node.meta)
    node.replace_all_uses_with(norm)
    module.graph.erase_node(node)
    return norm
