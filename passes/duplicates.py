"""Duplicates: the same comparison of the same value is made once."""

from __future__ import annotations

from typing import Any

from torch import fx

from autorep_fx.cost.fx_count import node_comparisons

__all__ = ["merge_duplicates"]


def merge_duplicates(module: fx.GraphModule) -> bool:
    """Let later calls that compare what an earlier one compared use its result; returns whether any did.

    DLA networks pool one value at two places, for example. An exporter to ONNX would merge the calls, and the counts
    differ; and under encryption the second would be paid for nothing. The graph is not recompiled.
    """
    first: dict[Any, fx.Node] = {}
    modified = False
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node_comparisons(node):
            continue
        key = (node.target, repr((node.args, node.kwargs)))  # nodes print as their unique names
        if key in first:
            node.replace_all_uses_with(first[key])
            module.graph.erase_node(node)
            modified = True
        else:
            first[key] = node
    return modified
