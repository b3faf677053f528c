"""``inspect``: what a model compares, and where, before anything is done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from autorep_fx.config import TransformConfig
from autorep_fx.config_io import parse_config
from autorep_fx.cost.fx_count import input_dependent, non_polynomial_name
from autorep_fx.passes.export_obstacles import export_obstacles
from autorep_fx.passes.graphs import sites_of
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.site_graph import build_site_graph, site_ranges
from autorep_fx.passes.sizes import shape_notes
from autorep_fx.sites import ChannelGroup, Site, SiteGraph, fixed_comparisons, gateable_comparisons
from autorep_fx.stages import select_sites

__all__ = ["Inspection", "inspect"]

_NAMED_SITES = 3  # of a long list in one line
_LEGEND = (
    "level: place on the longest chain of sites; depth: multiplications up to the output, if every gateable site "
    "became its polynomial; range: of the input, on the example inputs"
)


@dataclass(frozen=True)
class Inspection:
    """Sites of a model and their sums; all numbers are nominal comparisons for one sample.

    Attributes:
        sites: All sites in execution order; ``site.reason`` says why one is fixed.
        graph: Dependence of the sites, with levels, depths, channel groups, and ranges on the example inputs.
        problems: What keeps the model from being compiled; empty if nothing does.
        not_replaced: Calls of what is neither polynomial nor a comparison, such as ``layer_norm`` and ``softmax``, by
            name: they stay as they are, and secure protocols compute them besides the comparisons.
        training_differences: What the captured model does otherwise than the model in training.
        notes: What of the shapes is free or fixed, where settings say so, and at which size all is counted.
    """

    sites: tuple[Site, ...]
    graph: SiteGraph
    problems: tuple[str, ...] = ()
    not_replaced: Mapping[str, int] = field(default_factory=dict)
    training_differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gateable(self) -> int:
        """Comparisons that gates can remove."""
        return gateable_comparisons(self.sites)

    @property
    def fixed(self) -> int:
        """Comparisons that no gate removes: the floor of any budget."""
        return fixed_comparisons(self.sites)

    @property
    def total(self) -> int:
        """All comparisons."""
        return self.gateable + self.fixed

    @property
    def floor(self) -> dict[str, int]:
        """The fixed comparisons by kind of site, the largest first."""
        kinds: Counter[str] = Counter()
        for site in self.sites:
            if not site.gateable:
                kinds[site.kind] += site.comparisons
        return dict(kinds.most_common())

    def share(self, comparisons: int) -> float:
        """A number of comparisons as a fraction of all; 0 for a model that compares nothing."""
        return comparisons / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """As a mapping of plain values."""
        return {
            "total": self.total, "gateable": self.gateable, "fixed": self.fixed,
            "comparison_depth": self.graph.comparison_depth,
            "multiplicative_depth": self.graph.multiplicative_depth,
            "floor": {kind: {"comparisons": n, "share": self.share(n)} for kind, n in self.floor.items()},
            "not_replaced": dict(self.not_replaced),
            "problems": list(self.problems), "training_differences": list(self.training_differences),
            "notes": list(self.notes),
            "sites": [self._site_json(site) for site in self.sites],
            "edges": [list(edge) for edge in self.graph.graph.edges],
            "channel_groups": [
                {"channels": g.channels, "offsets": dict(g.offsets), "ties": list(g.ties), "declined": g.declined}
                for g in self.graph.channel_groups
            ],
        }  # fmt: skip

    def _site_json(self, site: Site) -> dict[str, Any]:
        known = self.graph.ranges.get(site.name)
        return {
            "name": site.name, "kind": site.kind, "shape": list(site.shape), "elements": site.elements,
            "comparisons": site.comparisons, "source": site.source, "owners": list(site.owners),
            "gateable": site.gateable, "reason": site.reason, "level": self.graph.levels[site.name],
            "multiplicative_depth": self.graph.depths[site.name], "range": list(known) if known else None,
        }  # fmt: skip

    def __str__(self) -> str:
        head = ("site", "kind", "shape", "elements", "comparisons", "level", "depth", "range", "source", "")
        lines = _columns([head, *(self._row(site) for site in self.sites)])
        if self.sites:
            lines.append(_LEGEND)
        lines.append(
            f"{self.total:,} comparisons: {self.gateable:,} gateable, {self.fixed:,} fixed; comparison depth "
            f"{self.graph.comparison_depth}, multiplicative depth {self.graph.multiplicative_depth}"
        )
        lines += [*self._floor_lines(), *self._group_lines()]
        lines += [f"in training: {text}" for text in self.training_differences]
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines + [f"problem: {text}" for text in self.problems])

    def _row(self, site: Site) -> tuple[str, ...]:
        low, high = self.graph.ranges.get(site.name, (None, None))
        return (
            site.name, site.kind, "×".join(map(str, site.shape)), f"{site.elements:,}", f"{site.comparisons:,}",
            str(self.graph.levels[site.name]), str(self.graph.depths[site.name]),
            "" if low is None else f"{low:.3g} … {high:.3g}", site.source or "",
            "; ".join(
                [*([] if site.gateable else [f"fixed: {site.reason}"]),
                 *([f"also {', '.join(site.merged)}"] if site.merged else [])]
            ),
        )  # fmt: skip

    def _floor_lines(self) -> list[str]:
        lines = [f"floor: {self.fixed:,} comparisons that no gate removes, {self.share(self.fixed):.1%} of all"]
        lines += [f"  {kind}: {number:,}, {self.share(number):.1%}" for kind, number in self.floor.items()]
        if self.not_replaced:
            calls = ", ".join(f"{name} ({number})" for name, number in self.not_replaced.items())
            lines.append(f"not replaced, besides what is compared (calls): {calls}")
        return lines

    def _group_lines(self) -> list[str]:
        """The tied groups and the declined ones, the largest first; sites alone need no line."""
        groups = self.graph.channel_groups
        told = sorted((g for g in groups if len(g.sites) > 1 or g.declined), key=lambda g: -len(g.sites))
        alone = len(groups) - len(told)
        lines = [_group_line(group) for group in told]
        return lines + ([f"channels of their own: {alone} site{'s' if alone != 1 else ''}"] if alone else [])


def _group_line(group: ChannelGroup) -> str:
    names, ties = (_shortened(names) for names in (group.sites, group.ties))
    tied = f" by {ties}" if ties else ""
    fate = f"; cannot be reordered: {group.declined}" if group.declined else ""
    return f"channels tied{tied}: {names} ({group.channels} channels){fate}"


def _shortened(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED_SITES
    return ", ".join(names[:_NAMED_SITES]) + (f" and {rest} more" if rest > 0 else "")


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numeric = {3, 4, 5, 6}
    return [
        "  ".join(row[i].rjust(w) if i in numeric else row[i].ljust(w) for i, w in enumerate(widths)).rstrip()
        for row in rows
    ]


def inspect(
    model: nn.Module | torch.export.ExportedProgram, example_inputs: Any, *,
    config: TransformConfig | Mapping[str, Any] | None = None,
) -> Inspection:  # fmt: skip
    """List every site of a model, the fixed floor, the depths and the channel groups; the model is not changed.

    Args:
        model: The model, or an exported program of it with a dynamic batch.
        example_inputs: A tensor ``(N, ...)``, a tuple of positional or a mapping of keyword arguments; the ranges of
            the sites are measured on them.
        config: Settings, whose substitutions, pools and ignored sites are taken into account.

    Raises:
        UnsupportedModelError: The model cannot be captured; every obstacle is listed.
        DataError: The model cannot take the example inputs.
        ConfigError: The settings do not fit the model.
    """
    settings = parse_config(config)
    inputs = ExampleInputs.of(example_inputs, settings.capture, getattr(model, "forward", None))
    module, _ = select_sites(model, inputs, settings)
    sites = sites_of(module)
    problems = export_obstacles(module, inputs)
    if not any(site.gateable for site in sites):
        problems.append("there is no activation that gates could replace")
    graph = build_site_graph(module, ranges=site_ranges(module, inputs))
    return Inspection(
        sites, graph, tuple(problems), _not_replaced(module), module.training_differences,
        tuple(shape_notes(module, inputs)),
    )  # fmt: skip


def _not_replaced(module: fx.GraphModule) -> dict[str, int]:
    dependent = input_dependent(module.graph.nodes)
    names = (non_polynomial_name(node) for node in module.graph.nodes if node in dependent)
    return dict(Counter(name for name in names if name is not None).most_common())
