"""Activation sites, and the graph in which they depend on each other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import networkx as nx

__all__ = ["Site", "SiteGraph", "fixed_comparisons", "gateable_comparisons"]


@dataclass(frozen=True)
class Site:
    """One *call* of a nonlinearity in a captured graph.

    Attributes:
        name: Module path of the call, such as ``layer1.0.relu``; its second call is ``layer1.0.relu#2``.
        kind: A name from :data:`autorep_fx.kinds.KINDS`, or a pooling or reduction such as ``max_pool2d``.
        shape: Shape of the output for one sample, such as ``(C, H, W)``.
        comparisons_per_element: Nominal comparisons per element of the output.
        channel_axis: Position of the channels in ``shape``; 0 for ``(C, H, W)``.
        source: ``path/file.py:line`` of the call in the user's code, if known.
        reason: Why it is not gated (it is *fixed*); None for a gateable site.
        total: Nominal comparisons for one sample, where they are no multiple of the elements (softmax); else None.
        owners: Qualified class names of the modules around the call, the outermost first.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    comparisons_per_element: int
    channel_axis: int = 0
    source: str | None = None
    reason: str | None = None
    total: int | None = None
    owners: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Scalar positions of the output for one sample."""
        return math.prod(self.shape)

    @property
    def comparisons(self) -> int:
        """Nominal comparisons for one sample."""
        return self.elements * self.comparisons_per_element if self.total is None else self.total

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    @property
    def gateable(self) -> bool:
        """Whether gates can remove its comparisons."""
        return self.reason is None

    def declined(self, reason: str) -> Site:
        """The same site, fixed for ``reason``."""
        return replace(self, reason=reason)


def gateable_comparisons(sites: Iterable[Site]) -> int:
    """Nominal comparisons for one sample that gates can remove."""
    return sum(site.comparisons for site in sites if site.gateable)


def fixed_comparisons(sites: Iterable[Site]) -> int:
    """Nominal comparisons for one sample that stay whatever the gates do."""
    return sum(site.comparisons for site in sites if not site.gateable)


class SiteGraph:
    """Sites and their dependence: an edge a → b where b reads a value that a produced, directly or not.

    Args:
        sites: Sites in execution order.
        edges: Pairs of site names, only between sites with no other site in between.
        multiplicative_depth: Multiplications on the longest path through the model; see
            :func:`autorep_fx.passes.site_graph.build_site_graph`.
    """

    def __init__(self, sites: Iterable[Site], edges: Iterable[tuple[str, str]], *, multiplicative_depth: int) -> None:
        self.sites = {site.name: site for site in sites}
        self.multiplicative_depth = multiplicative_depth
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        self.graph.add_nodes_from(self.sites)
        self.graph.add_edges_from(edges)

    @property
    def comparison_depth(self) -> int:
        """Sites on the longest chain: under MPC they run one after the other and set the rounds."""
        return int(nx.dag_longest_path_length(self.graph)) + 1 if self.sites else 0
