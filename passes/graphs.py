"""Small helpers on fx graphs that several passes share."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import fx

from autorep_fx.sites import Site

__all__ = [
    "Constants", "add_buffer", "aten_name", "calls", "drop_unused_buffers", "finish", "is_call", "node_shape",
    "samples_shape", "shared_copy", "site_nodes", "sites_of",
]  # fmt: skip

_Module = TypeVar("_Module", bound=torch.nn.Module)

#: The one key under which a node carries its :class:`Site`.
SITE_KEY = "site"
#: The key under which a node carries the axes of its tensor whose sizes vary with the height and width of an input.
FREE_AXES = "free_axes"


def aten_name(node: fx.Node) -> str:
    """``aten.relu.default`` for a call of that overload; an empty string for any other node."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return ""
    return str(target)


def is_call(node: fx.Node, *targets: Callable[..., Any]) -> bool:
    """Whether ``node`` calls one of ``targets``."""
    return node.op == "call_function" and node.target in targets


def calls(module: fx.GraphModule, *targets: Callable[..., Any]) -> list[fx.Node]:
    """All calls of ``targets`` in execution order."""
    return [node for node in module.graph.nodes if is_call(node, *targets)]


def node_shape(node: fx.Node) -> tuple[Any, ...] | None:
    """The (partly symbolic) shape recorded for a node's tensor; None for anything else."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def samples_shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of one sample where axis 0 is the dynamic batch and all others are static; else None."""
    shape = node_shape(node)
    if not shape or not all(isinstance(size, int) for size in shape[1:]):
        return None
    if isinstance(shape[0], int) or not shape[0].node.expr.is_symbol:
        return None
    return shape[1:]


def site_nodes(module: fx.GraphModule) -> Iterator[tuple[fx.Node, Site]]:
    """Nodes that carry a site, in execution order."""
    for node in module.graph.nodes:
        if SITE_KEY in node.meta:
            yield node, node.meta[SITE_KEY]


def sites_of(module: fx.GraphModule) -> tuple[Site, ...]:
    """All sites in execution order."""
    return tuple(site for _, site in site_nodes(module))


def add_buffer(module: torch.nn.Module, path: str, value: torch.Tensor) -> str:
    """Register ``value`` as a buffer at a dotted ``path``, making plain modules on the way; returns the path."""
    *parents, leaf = path.split(".")
    owner = module
    for part in parents:
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = owner.get_submodule(part)
    owner.register_buffer(leaf, value)
    return path


def drop_unused_buffers(module: fx.GraphModule) -> None:
    """Delete what passes registered and no node reads any more; tensors of the model and of its gates stay."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for name, _ in list(module.named_buffers(remove_duplicate=False)):
        if _is_registered(name) and name not in read:
            _delete(module, name)


class Constants:
    """Frees what a pass replaces as it goes: the weights of a model are then never there twice.

    Args:
        module: The graph that is edited.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._readers = Counter(str(node.target) for node in module.graph.find_nodes(op="get_attr"))

    def release(self, value: Any) -> None:
        """Erase a ``get_attr`` node that nothing reads any more, and what passes registered for it alone."""
        if not isinstance(value, fx.Node) or value.op != "get_attr" or value.users:
            return
        name = str(value.target)
        self._module.graph.erase_node(value)
        self._readers[name] -= 1
        if _is_registered(name) and self._readers[name] <= 0:
            _delete(self._module, name)


def _is_registered(name: str) -> bool:
    """Whether a buffer is of a pass, and not of the model or of its gates."""
    return name.startswith("autorep_") and not name.startswith("autorep_gates.")


def _delete(module: fx.GraphModule, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    delattr(module.get_submodule(owner), leaf)


def shared_copy(module: _Module) -> _Module:
    """A copy to edit that holds the same tensors: graph and submodules are its own, parameters and buffers are not."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def finish(module: fx.GraphModule, dead: Sequence[fx.Node] = ()) -> None:
    """Erase ``dead`` nodes, lint and recompile: the end of every edit."""
    for node in reversed(dead):
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
