"""A digest of a canonical graph: equal for two captures of the same architecture, whatever the weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import fx

from autorep_fx.cost.fx_count import output_shape

__all__ = ["fingerprint"]


def fingerprint(module: fx.GraphModule) -> str:
    """SHA-256 over operations, their arguments and shapes for one sample; node names do not matter."""
    numbers: dict[fx.Node, int] = {}
    digest = hashlib.sha256()
    for node in module.graph.nodes:
        if node.op == "get_attr" and not node.users:
            continue  # buffers such as num_batches_tracked, which the computation does not read

        def plain(value: Any) -> Any:
            return f"%{numbers[value]}" if isinstance(value, fx.Node) else _constant(value)

        arguments = fx.node.map_aggregate((node.args, node.kwargs), plain)
        target = node.target if node.op in ("get_attr", "call_function") else ""
        name = target if isinstance(target, str) else getattr(target, "__name__", None) or str(target)
        if isinstance(target, torch._ops.OpOverload):
            name = str(target)
        digest.update(f"{node.op}|{name}|{arguments}|{output_shape(node)}\n".encode())
        numbers[node] = len(numbers)
    return digest.hexdigest()


def _constant(value: Any) -> Any:
    # The training flag of norms follows the mode, not the architecture.
    return "flag" if isinstance(value, bool) else value
