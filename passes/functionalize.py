"""Make in-place operations functional, with aliasing respected."""

from __future__ import annotations

import operator

import torch
from torch import fx

from autorep_fx.errors import UnsupportedModelError
from autorep_fx.passes.graphs import finish
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.source import location

__all__ = ["FunctionalizePass", "is_view", "mutates"]

aten = torch.ops.aten
# View → how a written part is carried back into the whole; both take the same arguments after the first.
_SCATTERS = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}

# Overloads whose result may share memory with their input although their schema does not say so.
_MAYBE_VIEWS = {
    "reshape",
    "contiguous",
    "flatten",
    "to",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "type_as",
}


_KEPT = "writes to a parameter or buffer, which a compiled model cannot keep between calls"


def mutates(node: fx.Node) -> bool:
    """Whether ``node`` calls an operation that writes to its first argument (batch norm's buffers apart)."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    alias = target._schema.arguments[0].alias_info if target._schema.arguments else None
    return alias is not None and alias.is_write


def is_view(node: fx.Node) -> bool:
    """Whether the result of ``node`` may share memory with its first argument."""
    target = node.target
    if target is operator.getitem:  # one part of a split, chunk or unbind
        return True
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or not node.args:
        return False
    if target._schema.name.removeprefix("aten::") in _MAYBE_VIEWS:
        return True
    return any(r.alias_info is not None and not r.alias_info.is_write for r in target._schema.returns)


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """``aten.add.Tensor`` for ``aten.add_.Tensor``; None if there is no such overload."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None) if packet is not None and name.endswith("_") else None


class FunctionalizePass(Pass):
    """Replaces ``y = op_(x)`` with ``y = op(x)`` and re-points later uses of ``x`` to ``y``.

    1. Where ``x`` is a slice or a row of ``b``, the write is carried into ``b`` by ``slice_scatter`` or
       ``select_scatter``, and later uses of ``b`` are re-pointed too. Any other value that may share memory with ``x``
       must have no use after the call; otherwise the write would have been seen through it: an obstacle.
    2. A write to a parameter or buffer would be lost between calls, and is an obstacle.
    3. A write to a model input becomes functional: the caller's tensor is no longer changed.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Rewrite all in-place calls, or raise one error that lists all that cannot be rewritten."""
        order = {node: i for i, node in enumerate(module.graph.nodes)}
        base: dict[fx.Node, fx.Node] = {}
        members: dict[fx.Node, list[fx.Node]] = {}
        obstacles: list[str] = []
        dead: list[fx.Node] = []
        for node in list(module.graph.nodes):
            root = base[node.args[0]] if is_view(node) and isinstance(node.args[0], fx.Node) else node
            if not mutates(node):
                base[node] = root
                members.setdefault(root, []).append(node)
                continue
            written = node.args[0]
            assert isinstance(written, fx.Node)
            problem = _obstacle(node, written, members[base[written]], order)
            if problem:
                obstacles.append(problem)
                base[node] = base[written]
                continue
            for replacement in _rewrite(module, node, written, order):
                order[replacement] = order[node]
                source = replacement.args[0]
                root = base[source] if replacement.target in _SCATTERS and isinstance(source, fx.Node) else replacement
                base[replacement] = root
                members.setdefault(root, []).append(replacement)
            dead.append(node)
        if obstacles:
            fixes = ["Write these calls out of place, such as x = x + y."]
            if any(_KEPT in text for text in obstacles):
                fixes.append("What is kept between calls has to be an input and an output.")
            raise UnsupportedModelError(obstacles, fix=" ".join(fixes))
        finish(module, dead)
        return PassResult(module, modified=bool(dead))

    def ensures(self, result: PassResult) -> None:
        """No in-place call is left."""
        left = [node.name for node in result.module.graph.nodes if mutates(node)]
        if left:
            raise ValueError(f"in-place calls left: {', '.join(left)}")


def _obstacle(node: fx.Node, written: fx.Node, aliases: list[fx.Node], order: dict[fx.Node, int]) -> str | None:
    where = f"{node.target} ({location(node) or node.name})"
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    # Rule 2.
    if any(alias.op == "get_attr" for alias in aliases):
        return f"{where} {_KEPT}"
    # Rule 1.
    carried = {written, *_sliced_from(written)}
    for alias in aliases:
        if alias not in carried and any(order[user] > order[node] for user in alias.users):
            return f"{where} writes to a value of which {alias.name} is a view that is used later"
    if _functional(target) is None:
        return f"{where} has no functional form"
    return None


def _sliced_from(node: fx.Node) -> list[fx.Node]:
    """The values that ``node`` is a slice or a row of, nearest first."""
    found: list[fx.Node] = []
    while node.target in _SCATTERS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        found.append(node)
    return found


def _promotes(node: fx.Node, written: fx.Node) -> bool:
    """Whether the functional form gives another dtype, because another tensor has a wider one."""
    values = [value.meta.get("val") for value in node.all_input_nodes]
    types = [value.dtype for value in values if isinstance(value, torch.Tensor) and value.dim() > 0]
    dtype: torch.dtype = written.meta["val"].dtype
    if node.target is aten.copy_.default:
        return any(value.dtype != dtype for value in values[1:] if isinstance(value, torch.Tensor))
    return any(torch.promote_types(dtype, other) != dtype for other in types)


def _rewrite(module: fx.GraphModule, node: fx.Node, written: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """Put the functional form before ``node`` and re-point later uses; returns the new values."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    functional = _functional(target)
    assert functional is not None
    with module.graph.inserting_before(node):
        if target is aten.copy_.default:  # its functional form has no derivative
            replacement = module.graph.call_function(aten.expand_as.default, (node.args[1], written))
        else:
            replacement = module.graph.call_function(functional, node.args, node.kwargs)
        replacement.meta = dict(node.meta)
        if _promotes(node, written):  # in place, the result keeps the dtype of what is written to
            replacement = module.graph.call_function(aten.to.dtype, (replacement, written.meta["val"].dtype))
            replacement.meta = dict(node.meta)
    new = [replacement]
    for part, whole in zip([written, *_sliced_from(written)], _sliced_from(written), strict=False):
        with module.graph.inserting_before(node):
            scatter = _SCATTERS[part.target]  # type: ignore[index]
            new.append(module.graph.call_function(scatter, (whole, new[-1], *part.args[1:]), part.kwargs))
        new[-1].meta = {**node.meta, "val": whole.meta["val"]}
    views = _viewed_again(module, node, written, new[-1], order)
    fresh = [views[-1] if views else replacement, *new[1:]]
    node.replace_all_uses_with(fresh[0])
    for value, other in zip([written, *_sliced_from(written)], fresh, strict=True):
        value.replace_all_uses_with(other, delete_user_cb=lambda user: order.get(user, -1) > order[node])
    return [*new, *views]


def _viewed_again(
    module: fx.GraphModule, node: fx.Node, written: fx.Node, whole: fx.Node, order: dict[fx.Node, int]
) -> list[fx.Node]:
    """The same part of the whole as it is now, if a later call writes to it once more; the last is the part itself."""
    parts = [written, *_sliced_from(written)][:-1]
    later = [*node.users, *(user for user in written.users if order.get(user, -1) > order[node])]
    if not any(mutates(user) and user.args[0] in (node, written) for user in later):
        return []
    views: list[fx.Node] = []
    with module.graph.inserting_before(node):
        for part in reversed(parts):
            assert callable(part.target)
            view = module.graph.call_function(part.target, (whole, *part.args[1:]), part.kwargs)
            view.meta, whole = dict(part.meta), view
            views.append(view)
    return views
