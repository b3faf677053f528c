"""Graphs that keep less for the backward pass: a norm, a sum and a gate become one call."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.gates.norm_gate import norm_then_gate
from autorep_fx.passes.captured import NORM_KEY, CapturedModule
from autorep_fx.passes.graphs import is_call

__all__ = ["recomputing"]

aten = torch.ops.aten


@contextmanager
def recomputing(network: CapturedModule, *, wanted: bool = True) -> Iterator[int]:
    """Within it, inputs of gates that follow a batch norm are computed again in the backward pass.

    Args:
        network: A gated graph; it has its own graph back afterwards.
        wanted: False does nothing.

    Yields:
        How many gates do so.
    """
    if not wanted:
        yield 0
        return
    plain = network.graph
    network.graph = copy.deepcopy(plain)
    count = sum([_merge(network, node) for node in list(network.graph.nodes) if node.op == "call_module"])
    network.recompile()
    try:
        yield count
    finally:
        mode = network.training
        network.graph = plain
        network.train(mode)
        network.recompile()


def _merge(network: CapturedModule, node: fx.Node) -> bool:
    """Merge a gate with the norm, or with the norm and the sum, before it."""
    gate = network.get_submodule(str(node.target))
    if not isinstance(gate, GatedActivation) or isinstance(gate, GatedPool) or gate.site.channel_axis != 0:
        return False
    norm, other = _norm_before(node.args[0])
    if norm is None or len(node.args) > 1:
        return False
    z, weight, bias, mean, var, training, momentum, eps, *_ = norm.args
    with network.graph.inserting_before(node):
        module = network.graph.get_attr(str(node.target))
        call = network.graph.call_function(
            norm_then_gate, (z, weight, bias, mean, var, training, momentum, eps, other, module)
        )
    call.meta = {**node.meta, **({NORM_KEY: norm.meta[NORM_KEY]} if NORM_KEY in norm.meta else {})}
    node.replace_all_uses_with(call)
    for dead in (node, node.args[0], norm):
        if isinstance(dead, fx.Node) and not dead.users and dead in network.graph.nodes:
            network.graph.erase_node(dead)
    return True


def _norm_before(source: object) -> tuple[fx.Node | None, fx.Node | None]:
    """The norm whose result goes into the gate alone, and what is added to it."""
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return None, None
    if _is_norm(source):
        return source, None
    if is_call(source, aten.add.Tensor) and not source.kwargs:
        left, right = source.args
        for norm, other in ((left, right), (right, left)):
            if not isinstance(norm, fx.Node) or not isinstance(other, fx.Node) or norm is other:
                continue
            if _is_norm(norm) and len(norm.users) == 1 and _same_shape(norm, other):
                return norm, other
    return None, None


def _same_shape(one: fx.Node, other: fx.Node) -> bool:
    return bool(one.meta["val"].shape == other.meta["val"].shape)


def _is_norm(node: fx.Node) -> bool:
    """A batch norm with parameters and running statistics, which the merged call expects."""
    return is_call(node, aten.batch_norm.default) and all(isinstance(value, fx.Node) for value in node.args[:5])
