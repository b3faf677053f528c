"""Attention in the form that the exporter takes: four axes, and results of any strides."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autorep_fx.passes.graphs import FREE_AXES, node_shape

__all__ = ["copy_before_views", "with_four_axes"]

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
        fixed = shape is not None and all(isinstance(size, int) for size in shape[1:]) and FREE_AXES not in node.meta
        if shape is None or len(shape) == 4 or masked or not fixed:
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


def copy_before_views(exported: torch.export.ExportedProgram) -> None:
    """Copy what an attention gave before it is viewed: its decomposition has other strides than it had at capture."""
    graph = exported.graph_module.graph
    attentions = graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)
    strided = list(attentions)
    for node in strided:  # grows while it is walked
        for user in list(node.users):
            if user.target in (aten.transpose.int, aten.permute.default):
                strided.append(user)
            elif user.target in (aten.view.default, aten.reshape.default, aten.flatten.using_ints):
                with graph.inserting_before(user):
                    copied = graph.call_function(
                        aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
                    )
                copied.meta = dict(node.meta)
                user.replace_input_with(node, copied)
    exported.graph_module.recompile()
