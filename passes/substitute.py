"""Substitute: another activation, or average for max pooling, before anything is gated.

This changes what the model computes, on purpose: AutoReP (arXiv 2308.10134) trains EfficientNet with ReLU in place of
SiLU. With data the training makes up for it, and the untouched model remains the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from autorep_fx.cost.fx_count import kind_of
from autorep_fx.errors import ConfigError, did_you_mean
from autorep_fx.kinds import KINDS
from autorep_fx.passes.composites import canonical_call
from autorep_fx.passes.graphs import SITE_KEY, finish, site_nodes, sites_of
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.pools import AVERAGES, average_call, pooled_values
from autorep_fx.passes.shapes import record_missing_shapes
from autorep_fx.passes.spellings import unify_spellings
from autorep_fx.selectors import matching, no_match
from autorep_fx.sites import Site

__all__ = ["SUBSTITUTES", "SubstitutePass"]

# Activations that need no arguments of the call that they replace: name → kind and extra arguments.
_ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    **{name: (name, ()) for name in KINDS if name not in ("clip", "prelu")},
    "relu6": ("clip", (0.0, 6.0)),
    "hardtanh": ("clip", (-1.0, 1.0)),
}
#: What a site can be turned into.
SUBSTITUTES = (*_ACTIVATIONS, *AVERAGES.values())


class SubstitutePass(Pass):
    """Turns activations into other ones, and max pooling into average pooling.

    1. A rule selects sites by kind, name, glob or module class (:mod:`autorep_fx.selectors`, kinds first); a later
       rule wins.
    2. A substituted activation keeps the name of its site, so that other settings still find it. Where it now follows
       another one of its kind (a ReLU of a ReLU), the two are one site.
    3. Average pooling over the same windows, padding left out of the mean, compares nothing and is no site.

    Args:
        rules: Pattern → name of what to put there, such as ``{"silu": "relu", "max_pool2d": "avg_pool2d"}``.

    Attributes:
        changed: Site name → what was done.

    Raises:
        ConfigError: A rule names something that nothing can be turned into.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        unknown = [f"{v!r} for {k!r}.{did_you_mean(v, SUBSTITUTES)}" for k, v in rules.items() if v not in SUBSTITUTES]
        if unknown:
            raise ConfigError(
                "Nothing can be turned into these:\n" + "\n".join(f"  {text}" for text in unknown),
                fix=f"Use one of {', '.join(SUBSTITUTES)}.",
            )
        self.rules = dict(rules)
        self.changed: dict[str, str] = {}

    def call(self, module: fx.GraphModule) -> PassResult:
        """Substitute.

        Raises:
            ConfigError: With every rule that matches no site, or only sites that cannot become what it says.
        """
        chosen = self._chosen(sites_of(module))
        for node, site in list(site_nodes(module)):
            wanted = chosen.get(site.name)
            if wanted is not None:
                _substitute(module, node, site, wanted)
                self.changed[site.name] = f"{site.kind} became {wanted}"
        record_missing_shapes(module)
        if unify_spellings(module):
            _refresh_kinds(module)
        finish(module)
        return PassResult(module, modified=bool(self.changed))

    def _chosen(self, sites: tuple[Site, ...]) -> dict[str, str]:
        chosen: dict[str, str] = {}
        problems = []
        for pattern, wanted in self.rules.items():
            matched = matching(pattern, sites, first="kind")
            fitting = [site for site in matched if _fits(site, wanted)]
            if not matched:
                problems.append(no_match(pattern, sites))
            elif not fitting:
                kinds = ", ".join(sorted({site.kind for site in matched}))
                reason = "are so already" if kinds == wanted else f"cannot become it: {kinds}"
                problems.append(f"{pattern!r} for {wanted}: the sites that match {reason}.")
            chosen.update({site.name: wanted for site in fitting})
        if problems:
            raise ConfigError(
                "Substitutions do not fit the model:\n" + "\n".join(f"  {p}" for p in problems),
                fix="Use kinds, names, globs or module classes of sites that autorep_fx.inspect lists. Sites: "
                f"{', '.join(f'{site.name} ({site.kind})' for site in sites) or 'none'}.",
            )
        return chosen


def _fits(site: Site, wanted: str) -> bool:
    if wanted in _ACTIVATIONS:
        return site.kind in KINDS and site.kind != wanted
    return AVERAGES.get(site.kind) == wanted


def _substitute(module: fx.GraphModule, node: fx.Node, site: Site, wanted: str) -> None:
    with module.graph.inserting_before(node):
        if wanted in _ACTIVATIONS:
            kind, arguments = _ACTIVATIONS[wanted]
            made = canonical_call(KINDS[kind], arguments)
            call = module.graph.call_function(made.target, (node.args[0], *made.args), made.kwargs)
            call.meta = {**node.meta, SITE_KEY: _as_kind(site, kind)}
        else:
            target, arguments = average_call(node)
            call = module.graph.call_function(target, (node.args[0], *arguments))
            call.meta = {key: value for key, value in node.meta.items() if key not in (SITE_KEY, "val")}
    for value in pooled_values(node):
        value.replace_all_uses_with(call)
        if value is not node:
            module.graph.erase_node(value)
    module.graph.erase_node(node)


def _refresh_kinds(module: fx.GraphModule) -> None:
    """A ReLU behind a new ReLU6 is merged with it: what is left may be of another kind than its site says."""
    for node, site in list(site_nodes(module)):
        found = kind_of(node)
        if found is not None:
            node.meta[SITE_KEY] = _as_kind(site, found[0].name)


def _as_kind(site: Site, kind: str) -> Site:
    return replace(site, kind=kind, comparisons_per_element=KINDS[kind].comparisons)
