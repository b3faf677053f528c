"""Canonicalise: one operation per activation kind, and a :class:`Site` on every node that compares."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from autorep_fx.cost.fx_count import fixed_comparisons_of, input_dependent, operator_name, output_shape
from autorep_fx.errors import UnsupportedModelError
from autorep_fx.kinds import KIND_OF_TARGET
from autorep_fx.passes.graphs import SITE_KEY, finish, samples_shape, site_nodes
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.source import location, owners, scope
from autorep_fx.sites import Site

__all__ = ["CanonicalizePass"]

aten = torch.ops.aten

# Operations that leave each channel where it is: looking back through them finds what produced a value.
_ELEMENTWISE = {
    "add",
    "sub",
    "mul",
    "div",
    "batch_norm",
    "dropout",
    "relu",
    "hardtanh",
    "clone",
    "contiguous",
    "to",
}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_CHANNELS_LAST = {"linear", "matmul", "addmm", "layer_norm", "permute", "bmm", "mm"}


class CanonicalizePass(Pass):
    """Replaces each spelling of an activation with its canonical operation and records the sites.

    1. ``clamp(min=0)`` (also called ``clip``), ``clamp_min(0)`` and ``threshold(0, 0)`` become ``relu``.
    2. ``relu6`` and a two-sided ``clamp`` become ``hardtanh`` with their bounds.
    3. Every activation gets a site named after the module that made the call; a second call of the same module
       is ``name#2``. Sites that gates cannot serve are declined with the reason.
    4. Whatever else compares (max pooling, softmax, ...) gets a fixed site.
    5. A ReLU of a ReLU, or of a clip, is merged into it, and dead code is dropped. Operations that compare inside
       themselves (recurrent layers) are refused.
    6. What does not depend on an input (a table computed from parameters) is a constant and no site.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Rewrite the spellings, then name the sites."""
        _refuse_recurrent(module)
        changed, rounds = True, 0
        while changed:  # a rewritten spelling may merge with what is before it
            rewritten = [_canonical(module, node) for node in list(module.graph.nodes)]
            changed = any(rewritten)
            changed = module.graph.eliminate_dead_code() or changed
            rounds += 1
        modified = rounds > 1
        finish(module)
        names: Counter[str] = Counter()
        dependent = input_dependent(module.graph.nodes)
        for node in module.graph.nodes:
            site = _site(node, names) if node in dependent else None
            if site is not None and node.meta.get(SITE_KEY) != site:
                node.meta[SITE_KEY] = site
                modified = True
        return PassResult(module, modified)

    def ensures(self, result: PassResult) -> None:
        """Site names are unique, and every activation has a site."""
        names = Counter(site.name for _, site in site_nodes(result.module))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"site names used twice: {', '.join(twice)}")


def _refuse_recurrent(module: fx.GraphModule) -> None:
    """Refuse operations that hide comparisons inside themselves.

    Raises:
        UnsupportedModelError: With every such call.
    """
    hidden = [node for node in module.graph.nodes if operator_name(node) in _RECURRENT]
    if hidden:
        raise UnsupportedModelError(
            [f"{n.target} ({location(n) or n.name}) compares inside itself, out of reach" for n in hidden],
            fix="Write the recurrence with cells, such as nn.LSTMCell in a loop over fixed steps.",
        )


def _canonical(module: fx.GraphModule, node: fx.Node) -> bool:
    name = operator_name(node)
    if name == "relu6":
        return _replace(module, node, aten.hardtanh.default, (node.args[0], 0.0, 6.0))
    if name == "hardtanh" and len(node.args) < 3:
        low, high = _argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0)
        return _replace(module, node, aten.hardtanh.default, (node.args[0], low, high))
    if name == "threshold" and tuple(node.args[1:]) == (0, 0):
        return _replace(module, node, aten.relu.default, (node.args[0],))
    if name == "clamp_min" and node.args[1] == 0:
        return _replace(module, node, aten.relu.default, (node.args[0],))
    if name == "relu" and isinstance(node.args[0], fx.Node):
        return _merge_relu(module, node, node.args[0])
    if str(node.target) == "aten.special_expit.default":
        return _replace(module, node, aten.sigmoid.default, (node.args[0],))
    if str(node.target) in ("aten.clamp.default", "aten.clip.default"):
        low, high = _argument(node, 1, "min", None), _argument(node, 2, "max", None)
        low = None if low == -math.inf else low
        high = None if high == math.inf else high
        if low == 0 and high is None:
            return _replace(module, node, aten.relu.default, (node.args[0],))
        if low is not None and high is not None:
            return _replace(module, node, aten.hardtanh.default, (node.args[0], float(low), float(high)))
    return False


def _merge_relu(module: fx.GraphModule, node: fx.Node, source: fx.Node) -> bool:
    """Drop a ReLU of what is not negative; move one behind a clip into the clip: what compares is compared once."""
    name = operator_name(source)
    if name == "relu" or (name == "hardtanh" and float(source.args[1]) >= 0):  # type: ignore[arg-type]
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        return True
    if name == "hardtanh" and len(source.users) == 1 and float(source.args[2]) > 0:  # type: ignore[arg-type]
        return _replace(module, node, aten.hardtanh.default, (source.args[0], 0.0, source.args[2]))
    return False


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _replace(module: fx.GraphModule, node: fx.Node, target: Any, args: tuple[Any, ...]) -> bool:
    value = node.meta.get("val")
    if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return False  # integer arithmetic on indices is no activation
    with module.graph.inserting_before(node):
        replacement = module.graph.call_function(target, args)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    module.graph.erase_node(node)
    return True


def _site(node: fx.Node, names: Counter[str]) -> Site | None:
    kind = KIND_OF_TARGET.get(str(node.target)) if node.op == "call_function" else None
    value = node.meta.get("val")
    if kind is not None and not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return None
    if kind is not None:
        shape = output_shape(node)
        name, source = _name(node, kind.name, names), location(node)
        site = Site(name, kind.name, shape[1:], kind.comparisons, source=source, owners=owners(node))
        return _check_gateable(node, site)
    comparisons = fixed_comparisons_of(node)
    if not comparisons:
        return None
    operation = operator_name(node)
    return Site(
        _name(node, operation, names), operation, output_shape(node)[1:], 1, source=location(node), total=comparisons,
        reason=f"{operation} is not an activation that gates replace", owners=owners(node),
    )  # fmt: skip


def _check_gateable(node: fx.Node, site: Site) -> Site:
    """The site with its channel axis, or declined with the reason."""
    shape = samples_shape(node)
    if shape is None:
        sizes = tuple(node.meta["val"].shape)
        reason = f"its shape {sizes} does not start with the batch axis followed by fixed sizes"
        return replace(site, shape=output_shape(node)).declined(reason)  # fmt: skip
    if math.prod(shape) == 0:
        return site.declined("it has no elements")
    if not shape:
        return replace(site, shape=(1,)).declined("it has one element per sample and no channels")
    axis = len(shape) - 1 if len(shape) > 1 and _channels_last(node) else 0
    return replace(site, shape=shape, channel_axis=axis)


def _channels_last(node: fx.Node) -> bool:
    current: Any = node.args[0]
    while isinstance(current, fx.Node):
        name = operator_name(current).rstrip("_")
        if name in _CHANNELS_LAST:
            return True
        if name not in _ELEMENTWISE:
            return False
        current = current.args[0]
    return False


def _name(node: fx.Node, kind: str, names: Counter[str]) -> str:
    path, owner = scope(node)
    base = path if path and owner.startswith("torch.nn.modules.activation") else f"{path}.{kind}".lstrip(".")
    names[base] += 1
    name = base if names[base] == 1 else f"{base}#{names[base]}"
    return name if name == base or name not in names else _name(node, kind, names)
