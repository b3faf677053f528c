"""Record shapes and dtypes of a graph after an edit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

__all__ = ["record_missing_shapes", "record_shapes"]


def record_shapes(module: fx.GraphModule) -> None:
    """Run the whole graph on its recorded symbolic inputs and set ``meta["val"]`` of every node anew.

    An operation that looks at a symbolic size may fix it for good; where recorded values are still true,
    :func:`record_missing_shapes` leaves them alone.
    """
    values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    kept = {node: dict(node.meta) for node in module.graph.nodes}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        FakeTensorProp(module, _fake_mode(module)).propagate_dont_convert_inputs(*values)
    for node, meta in kept.items():
        node.meta = {**meta, "val": node.meta.get("val")}


def record_missing_shapes(module: fx.GraphModule, nodes: Iterable[fx.Node] | None = None) -> None:
    """Set ``meta["val"]`` of the nodes that have none, from those of their inputs.

    Args:
        module: The module.
        nodes: The new nodes in execution order, where they are known; None for all of the graph.
    """
    mode = _fake_mode(module)
    with mode, torch.no_grad():
        for node in module.graph.nodes if nodes is None else nodes:
            if "val" not in node.meta and node.op in ("get_attr", "call_function"):
                node.meta["val"] = _evaluate(module, node, mode)


def _fake_mode(module: fx.GraphModule) -> FakeTensorMode:
    values = (node.meta.get("val") for node in module.graph.find_nodes(op="placeholder"))
    return next(value.fake_mode for value in values if isinstance(value, FakeTensor))


def _evaluate(module: fx.GraphModule, node: fx.Node, mode: FakeTensorMode) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return mode.from_tensor(getattr(module.get_submodule(owner), name), static_shapes=True)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    assert callable(node.target)
    return node.target(*args, **kwargs)
