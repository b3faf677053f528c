"""Attention in the form that the exporter takes: queries, keys and values with four axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autorep_fx.passes.graphs import node_shape

__all__ = ["with_four_axes"]

aten = torch.ops.aten


def with_four_axes(module: fx.GraphModule) -> None:
    """Fold the leading axes of attention calls into one, and unfold the results (windows as axes of their own, Twins).

    Attention over three axes gets one more. Calls with a mask stay: its axes would have to follow. Shapes are not
    recorded anew; the graph is to be exported next.
    """
    modified = False
    for node in module.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        shape = node_shape(node)
        masked = (len(node.args) > 3 and node.args[3] is not None) or node.kwargs.get("attn_mask") is not None
        if shape is None or len(shape) == 4 or masked or not all(isinstance(size, int) for size in shape[1:]):
            continue
        with module.graph.inserting_before(node):
            node.args = (*(_folded(module, value, len(shape)) for value in node.args[:3]), *node.args[3:])
        with module.graph.inserting_after(node):
            unfolded = module.graph.call_function(aten.reshape.default, (node, [-1, *shape[1:]]))
        node.replace_all_uses_with(unfolded, delete_user_cb=lambda user, new=unfolded: user is not new)
        modified = True
    if modified:
        module.graph.lint()
        module.recompile()


def _folded(module: fx.GraphModule, value: Any, rank: int) -> fx.Node:
    if rank == 3:
        return module.graph.call_function(aten.unsqueeze.default, (value, 1))
    return module.graph.call_function(aten.flatten.using_ints, (value, 0, rank - 4))
