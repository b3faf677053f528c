"""Canonicalise: one operation per activation kind, and a :class:`Site` on every node that compares."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import fx

from autorep_fx.cost.dependence import input_dependent
from autorep_fx.cost.fx_count import (
    fixed_comparisons_of,
    kind_of,
    operator_name,
    output_shape,
    uncountable_reason,
)
from autorep_fx.errors import UnsupportedModelError
from autorep_fx.kinds import ActivationKind
from autorep_fx.passes.channel_axis import channel_axis
from autorep_fx.passes.duplicates import MERGED_KEY, merge_duplicates
from autorep_fx.passes.graphs import FREE_AXES, SITE_KEY, finish, samples_shape, site_nodes
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.source import call_name, location, owners
from autorep_fx.passes.spellings import unify_spellings
from autorep_fx.sites import Site

__all__ = ["CanonicalizePass"]


class CanonicalizePass(Pass):
    """Replaces each spelling of an activation with its canonical operation and records the sites.

    1. Spellings are unified as :func:`autorep_fx.passes.spellings.unify_spellings` says, and dead code is dropped.
    2. Every activation gets a site named after the module that made the call; a second call of the same module
       is ``name#2``. Sites that gates cannot serve are declined with the reason.
    3. Whatever else compares (max pooling, softmax, ...) gets a fixed site.
    4. What compares and cannot be counted (a recurrent layer, a median) is refused.
    5. What does not depend on an input (a table computed from parameters) is a constant and no site.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Rewrite the spellings, then name the sites."""
        modified = unify_spellings(module)
        modified = merge_duplicates(module) or modified
        finish(module)
        _refuse_uncountable(module)
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


def _refuse_uncountable(module: fx.GraphModule) -> None:
    """Refuse operations whose comparisons cannot be counted.

    Raises:
        UnsupportedModelError: With every such call.
    """
    dependent = input_dependent(module.graph.nodes)
    reasons = [(node, uncountable_reason(node)) for node in module.graph.nodes if node in dependent]
    found = [(node, reason) for node, reason in reasons if reason is not None]
    if found:
        raise UnsupportedModelError(
            [f"{n.target} ({location(n) or n.name}) {reason}" for n, reason in found],
            fix="Write it with operations that can be counted; a recurrence with cells, such as nn.LSTMCell in a loop "
            "over fixed steps.",
        )


def _site(node: fx.Node, names: Counter[str]) -> Site | None:
    found = kind_of(node)
    if found is not None:
        kind, shape = found[0], output_shape(node)
        name, source = _name(node, kind.name, names), location(node)
        site = Site(
            name, kind.name, shape[1:], kind.comparisons, source=source, owners=owners(node), merged=_merged(node, name)
        )
        return _check_gateable(node, site, kind)
    comparisons = fixed_comparisons_of(node)
    if not comparisons:
        return None
    operation = operator_name(node)
    name = _name(node, operation, names)
    return Site(
        name, operation, output_shape(node)[1:], 1, source=location(node), total=comparisons,
        reason=f"{operation} is not an activation that gates replace", owners=owners(node), merged=_merged(node, name),
    )  # fmt: skip


def _merged(node: fx.Node, name: str) -> tuple[str, ...]:
    return tuple(other for other in node.meta.get(MERGED_KEY, ()) if other != name)


def _check_gateable(node: fx.Node, site: Site, kind: ActivationKind) -> Site:
    """The site with its channel axis, or declined with the reason."""
    parameters: Any = node.args[1 : 1 + kind.parameters]
    if any(not isinstance(value, fx.Node) or value.op != "get_attr" for value in parameters):
        return replace(site, shape=output_shape(node)).declined(f"its {kind.name} parameter is computed in the graph")
    shape = samples_shape(node)
    if shape is None:
        sizes = tuple(node.meta["val"].shape)
        reason = f"its shape {sizes} does not start with the batch axis followed by fixed sizes"
        return replace(site, shape=output_shape(node)).declined(reason)  # fmt: skip
    if math.prod(shape) == 0:
        return site.declined("it has no elements")
    if not shape:
        return replace(site, shape=(1,)).declined("it has one element per sample and no channels")
    # A parameter per channel says which axis has the channels.
    by_parameter = any(value.meta["val"].numel() > 1 for value in parameters)
    axis = 1 if by_parameter else channel_axis(node)
    if axis in node.meta.get(FREE_AXES, ()):
        return replace(site, shape=shape).declined("its channels vary with the height or width of the input")
    return replace(site, shape=shape, channel_axis=max(axis - 1, 0) if len(shape) > 1 else 0)


def _name(node: fx.Node, kind: str, names: Counter[str]) -> str:
    base = call_name(node, kind)
    names[base] += 1
    name = base if names[base] == 1 else f"{base}#{names[base]}"
    return name if name == base or name not in names else _name(node, kind, names)
