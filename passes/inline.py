"""Inline the submodules that ``torch.no_grad()`` and ``autocast`` blocks become, so that no ReLU hides in them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator

import torch
from torch import fx

from autorep_fx.errors import UnsupportedModelError
from autorep_fx.passes.functionalize import is_view, mutates
from autorep_fx.passes.graphs import calls, finish
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.shapes import record_dtypes
from autorep_fx.passes.source import location

__all__ = ["InlinePass"]

# Name of the higher-order operation → position of the wrapped submodule among its arguments.
_INLINABLE = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}


def _is_higher_order(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator)


class InlinePass(Pass):
    """Replaces ``wrap_with_…(flags, submodule, *values)`` with the nodes of the submodule.

    What leaves a block without gradients is detached, so that training sees the same gradients as before. Under
    autocast the block would compute in a lower precision: the inlined graph does not. Any other higher-order
    operation (control flow) is an obstacle, and so is a write in a block without gradients to a value from
    outside, whose gradient would ignore the write. The checks of dtype and device that torch leaves at casts are
    dropped: they would refuse the module once it is moved.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Inline until nothing is left, since blocks nest."""
        modified, recast, numbers = False, False, itertools.count()
        while True:
            nodes = [node for node in module.graph.nodes if _is_higher_order(node)]
            obstacles = [
                f"{node.target} ({location(node) or node.name}) is control flow that a flat graph cannot hold"
                for node in nodes
                if str(node.target) not in _INLINABLE
            ]
            if obstacles:
                raise UnsupportedModelError(obstacles, fix="Replace data-dependent control flow by tensor operations.")
            hidden = [text for node in nodes if _without_gradients(node) for text in _hidden_writes(module, node)]
            if hidden:
                raise UnsupportedModelError(hidden, fix="Write these calls out of place, such as x = x + y.")
            if not nodes:
                checks = calls(module, torch.ops.aten._assert_tensor_metadata.default)
                finish(module, checks)
                if recast:
                    record_dtypes(module)  # the recorded dtypes are those of autocast
                return PassResult(module, modified or bool(checks))
            recast = recast or any(str(node.target) == "wrap_with_autocast" for node in nodes)
            for node in nodes:
                _inline(module, node, numbers)
            module.delete_all_unused_submodules()
            modified = True

    def ensures(self, result: PassResult) -> None:
        """No higher-order operation is left."""
        left = [node.name for node in result.module.graph.nodes if _is_higher_order(node)]
        if left:
            raise ValueError(f"higher-order operations left: {', '.join(left)}")


def _without_gradients(node: fx.Node) -> bool:
    return str(node.target) == "wrap_with_set_grad_enabled" and node.args[0] is False


def _hidden_writes(module: fx.GraphModule, node: fx.Node) -> list[str]:
    """Writes in a block to a value that was computed outside of it."""
    holder = node.args[1]
    assert isinstance(holder, fx.Node)
    inner = module.get_submodule(str(holder.target))
    assert isinstance(inner, fx.GraphModule)
    placeholders = [part for part in inner.graph.nodes if part.op == "placeholder"]
    outside = dict(zip(placeholders, node.args[2:], strict=True))
    found = []
    for part in inner.graph.nodes:
        written = part
        while isinstance(written, fx.Node) and (mutates(written) or is_view(written)):
            written = written.args[0]
        value = outside.get(written)
        # A write to a parameter or buffer is an obstacle of its own.
        if mutates(part) and isinstance(value, fx.Node) and value.op != "get_attr":
            where = location(part) or part.name
            found.append(f"{part.target} ({where}) writes, without gradients, to a value from outside the block")
    return found


def _adopt(module: fx.GraphModule, inner: fx.GraphModule, path: str, numbers: Iterator[int]) -> str:
    """Give ``module`` what ``inner`` holds at ``path`` (a nested block), under a name that is free."""
    name = next(name for i in numbers if not hasattr(module, name := f"inlined_{i}"))
    setattr(module, name, operator.attrgetter(path)(inner))
    return name


def _inline(module: fx.GraphModule, node: fx.Node, numbers: Iterator[int]) -> None:
    position = _INLINABLE[str(node.target)]
    holder = node.args[position]
    assert isinstance(holder, fx.Node)
    inner = module.get_submodule(str(holder.target))
    assert isinstance(inner, fx.GraphModule)
    values: dict[fx.Node, fx.Node] = {}
    placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
    for placeholder, value in zip(placeholders, node.args[position + 1 :], strict=True):
        assert isinstance(value, fx.Node)
        values[placeholder] = value
    with module.graph.inserting_before(node):
        for part in inner.graph.nodes:
            if part.op not in ("placeholder", "output"):
                values[part] = module.graph.node_copy(part, lambda n: values[n])
            if part.op == "get_attr":
                values[part].target = _adopt(module, inner, str(part.target), numbers)
    [output] = [n for n in inner.graph.nodes if n.op == "output"]
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    dead = [node]
    detached = _without_gradients(node)
    for user in list(node.users):
        assert user.target is operator.getitem
        index = user.args[1]
        assert isinstance(index, int)
        result = results[index]
        assert isinstance(result, fx.Node)
        replacement = values[result]
        if detached:
            with module.graph.inserting_before(node):
                replacement = module.graph.call_function(torch.ops.aten.detach.default, (replacement,))
            replacement.meta = dict(user.meta)
        user.replace_all_uses_with(replacement)
        dead.append(user)
    if len(holder.users) == 1:
        dead.insert(0, holder)
    for part in reversed(dead):
        module.graph.erase_node(part)
