"""``inspect``: what a model compares, and where, before anything is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from autorep_fx.passes.graphs import sites_of
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.site_graph import build_site_graph
from autorep_fx.sites import Site, SiteGraph, fixed_comparisons, gateable_comparisons
from autorep_fx.stages import canonicalize, capture

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """Sites of a model and their sums; all numbers are nominal comparisons for one sample.

    Attributes:
        sites: All sites in execution order; ``site.reason`` says why one is fixed.
        graph: Dependence of the sites, with ``comparison_depth`` and ``multiplicative_depth``.
        problems: What keeps the model from being compiled; empty if nothing does.
    """

    sites: tuple[Site, ...]
    graph: SiteGraph
    problems: tuple[str, ...] = ()

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

    def to_json(self) -> dict[str, Any]:
        """As a mapping of plain values."""
        return {
            "total": self.total, "gateable": self.gateable, "fixed": self.fixed,
            "comparison_depth": self.graph.comparison_depth,
            "multiplicative_depth": self.graph.multiplicative_depth,
            "problems": list(self.problems),
            "sites": [
                {"name": s.name, "kind": s.kind, "shape": list(s.shape), "elements": s.elements,
                 "comparisons": s.comparisons, "source": s.source, "gateable": s.gateable, "reason": s.reason}
                for s in self.sites
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [("site", "kind", "shape", "elements", "comparisons", "source", "")]
        rows += [
            (s.name, s.kind, "×".join(map(str, s.shape)), f"{s.elements:,}", f"{s.comparisons:,}", s.source or "",
             "" if s.gateable else f"fixed: {s.reason}")
            for s in self.sites
        ]  # fmt: skip
        lines = _columns(rows)
        lines.append(
            f"{self.total:,} comparisons: {self.gateable:,} gateable, {self.fixed:,} fixed; comparison depth "
            f"{self.graph.comparison_depth}, multiplicative depth {self.graph.multiplicative_depth}"
        )
        return "\n".join(lines + [f"problem: {text}" for text in self.problems])


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numeric = {3, 4}
    return [
        "  ".join(row[i].rjust(w) if i in numeric else row[i].ljust(w) for i, w in enumerate(widths)).rstrip()
        for row in rows
    ]


def inspect(model: nn.Module, example_inputs: Any) -> Inspection:
    """List every site of a model, the fixed floor and the depths; the model is not changed.

    Args:
        model: The model.
        example_inputs: A tensor ``(N, ...)``, a tuple of positional or a mapping of keyword arguments.

    Raises:
        UnsupportedModelError: The model cannot be captured; every obstacle is listed.
        DataError: The model cannot take the example inputs.
    """
    inputs = ExampleInputs.of(example_inputs)
    module = canonicalize(capture(model, inputs), example_inputs=inputs)
    sites = sites_of(module)
    problem = () if any(site.gateable for site in sites) else ("there is no activation that gates could replace",)
    return Inspection(sites, build_site_graph(module), problem)
