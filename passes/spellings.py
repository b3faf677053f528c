"""One operation per activation kind: whatever the kinds table spells otherwise is rewritten."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from autorep_fx.cost.fx_count import bound_arguments, kind_of, operator_name
from autorep_fx.passes.composites import canonical_call, composed_kind
from autorep_fx.passes.graphs import FREE_AXES
from autorep_fx.passes.shapes import record_missing_shapes

__all__ = ["unify_spellings"]

aten = torch.ops.aten
_CLAMPS = (aten.clamp.default, aten.clip.default, aten.clamp_min.default, aten.clamp_max.default)


def unify_spellings(module: fx.GraphModule) -> bool:
    """Rewrite until nothing changes; returns whether anything did. The graph is not recompiled.

    1. A call that the kinds table lists as a spelling becomes the canonical call.
    2. An expression of several operations that equals a canonical call becomes that call
       (:mod:`autorep_fx.passes.composites`).
    3. ``glu`` becomes the product of one half with the sigmoid of the other.
    4. Clips in a row, ReLUs among them, become one. (An exporter to ONNX would merge them, and the counts differ.)
    """
    modified = False
    changed = True
    while changed:  # a rewritten spelling may be a part of another, or merge with what is before it
        rewritten = [_rewrite(module, node) for node in list(module.graph.nodes)]
        changed = module.graph.eliminate_dead_code() or any(rewritten)
        changed = changed or _compose(module)
        modified = modified or changed
    return modified


def _rewrite(module: fx.GraphModule, node: fx.Node) -> bool:
    if not _is_floating(node):
        return False  # integer arithmetic on indices is no activation
    if operator_name(node) == "glu":
        return _split_glu(module, node)
    if _merge_clips(module, node):
        return True
    found = kind_of(node)
    if found is None or found[1] is None:
        return False
    call = canonical_call(found[0], found[1])
    given = (call.target, (node.args[0], *call.args), call.kwargs)
    if given == (node.target, node.args, node.kwargs):
        return False
    _replace(module, node, *given)
    return True


def _compose(module: fx.GraphModule) -> bool:
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    changed = False
    for node in list(module.graph.nodes):
        composed = composed_kind(module, node, order) if _is_floating(node) else None
        if composed is not None:
            source, call = composed
            order[_replace(module, node, call.target, (source, *call.args), call.kwargs)] = order[node]
            changed = True
    return changed


def _merge_clips(module: fx.GraphModule, node: fx.Node) -> bool:
    """Make one clip of two in a row, a ReLU being one from 0 on: what compares is compared once."""
    source: Any = node.args[0]
    outer, inner = _span(node), _span(source)
    if outer is None or inner is None:
        return False
    low, high = (min(max(bound, outer[0]), outer[1]) for bound in inner)
    if (low, high) == inner:
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        return True
    if len(source.users) > 1 or low >= high:
        return False
    if (low, high) == (0, math.inf):
        _replace(module, node, aten.relu.default, (source.args[0],))
    elif math.inf in (-low, high):
        bounds = (None if low == -math.inf else low, None if high == math.inf else high)
        _replace(module, node, aten.clamp.default, (source.args[0], *bounds))
    else:
        _replace(module, node, aten.hardtanh.default, (source.args[0], float(low), float(high)))
    return True


def _span(node: Any) -> tuple[float, float] | None:
    """The interval that a ReLU, clip or clamp keeps values in; None for anything else."""
    if not isinstance(node, fx.Node) or not _is_floating(node):
        return None
    found = kind_of(node)
    if found is not None:
        spans: dict[str, Any] = {"relu": (0, math.inf), "clip": found[1]}
        return spans.get(found[0].name)
    if node.target not in _CLAMPS:
        return None
    bounds = bound_arguments(node)
    low, high = bounds.get("min"), bounds.get("max")
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        return None
    return (-math.inf if low is None else low, math.inf if high is None else high)


def _split_glu(module: fx.GraphModule, node: fx.Node) -> bool:
    """``a·sigmoid(b)`` with the halves of an axis of fixed size; any other ``glu`` stays as it is."""
    source, axis = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
    assert isinstance(source, fx.Node)
    size, rank = source.meta["val"].shape[axis], source.meta["val"].dim()
    if not isinstance(size, int) or axis % rank in source.meta.get(FREE_AXES, ()):
        return False
    meta = {key: value for key, value in node.meta.items() if key != "val"}
    with module.graph.inserting_before(node):
        values, gates = (
            module.graph.call_function(aten.slice.Tensor, (source, axis, start, start + size // 2))
            for start in (0, size // 2)
        )
        sigmoid = module.graph.call_function(aten.sigmoid.default, (gates,))
        product = module.graph.call_function(aten.mul.Tensor, (values, sigmoid))
    made = (values, gates, sigmoid, product)
    for new in made:
        new.meta = dict(meta)
    node.replace_all_uses_with(product)
    module.graph.erase_node(node)
    record_missing_shapes(module, made)
    return True


def _replace(
    module: fx.GraphModule, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    with module.graph.inserting_before(node):
        replacement = module.graph.call_function(target, args, kwargs)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    module.graph.erase_node(node)
    return replacement


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point()
