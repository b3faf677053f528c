"""Fold constants: what does not depend on an input is computed once, at compile time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.cost.fx_count import input_dependent
from autorep_fx.passes.graphs import add_buffer, finish
from autorep_fx.passes.infra import Pass, PassResult

__all__ = ["FoldConstantsPass"]

# A constant of more elements than this stays computed: broadcasts of small tables would fill the file.
_LARGEST = 2**24


class FoldConstantsPass(Pass):
    """Replaces standardised weights, tables of relative positions and the like by their values.

    1. A value that an input reaches, or that is drawn at random, stays.
    2. Of the others, what an input-dependent node reads becomes a buffer (a plain number, if it is one).

    For lowering only: in training such values follow their parameters.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Compute and replace."""
        # Rule 1.
        live = input_dependent(module.graph.nodes)
        values: dict[fx.Node, Any] = {}
        modified = False
        for node in list(module.graph.nodes):
            if node in live or node.op not in ("get_attr", "call_function") or _is_random(node):
                continue
            if not all(source in values for source in node.all_input_nodes):
                continue
            values[node] = _evaluate(module, node, values)
            readers = [user for user in node.users if user in live]
            # Rule 2.
            if node.op == "call_function" and readers:
                modified = _replace(module, node, values[node], readers) or modified
        if modified:
            module.graph.eliminate_dead_code()
            finish(module)
        return PassResult(module, modified)


def _is_random(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


@torch.no_grad()
def _evaluate(module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), name)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _replace(module: fx.GraphModule, node: fx.Node, value: Any, readers: list[fx.Node]) -> bool:
    """Give the readers the value itself; returns whether they got it."""
    new: Any = value
    if isinstance(value, Tensor):
        if value.numel() > _LARGEST:
            return False
        with module.graph.inserting_before(node):
            path = f"autorep_constants.{node.name}"
            new = module.graph.get_attr(add_buffer(module, path, value.detach().clone().contiguous()))
        new.meta = dict(node.meta)
    elif not isinstance(value, (bool, int, float)):
        return False  # a tuple: its parts are taken out by constant nodes of their own
    for reader in readers:
        reader.args, reader.kwargs = fx.node.map_arg((reader.args, reader.kwargs), lambda n: new if n is node else n)
    return True
