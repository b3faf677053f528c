"""Duplicates: the same comparison of the same value is made once."""

from __future__ import annotations

from typing import Any

from torch import fx

from autorep_fx.cost.fx_count import kind_of, node_comparisons, operator_name
from autorep_fx.passes.source import call_name

__all__ = ["MERGED_KEY", "merge_duplicates"]

#: The key under which a node carries the names of the calls that were merged into it.
MERGED_KEY = "merged"


def merge_duplicates(module: fx.GraphModule) -> bool:
    """Let later calls that compare what an earlier one compared use its result; returns whether any did.

    DLA networks pool one value at two places, for example. An exporter to ONNX would merge the calls, and the counts
    differ; and under encryption the second would be paid for nothing. The names of later calls stay with the first, so
    that settings still find them. The graph is not recompiled.
    """
    first: dict[Any, fx.Node] = {}
    modified = False
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node_comparisons(node):
            continue
        key = (node.target, repr((node.args, node.kwargs)))  # nodes print as their unique names
        if key in first:
            found = kind_of(node)
            name = call_name(node, found[0].name if found else operator_name(node))
            first[key].meta[MERGED_KEY] = (*first[key].meta.get(MERGED_KEY, ()), name, *node.meta.get(MERGED_KEY, ()))
            node.replace_all_uses_with(first[key])
            module.graph.erase_node(node)
            modified = True
        else:
            first[key] = node
    return modified
