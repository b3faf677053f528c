"""Activation sites, and the graph in which they depend on each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import networkx as nx

__all__ = ["ChannelGroup", "Site", "SiteGraph", "fixed_comparisons", "gateable_comparisons"]


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
        merged: Names of other calls that compared the same value, which this one now stands for.
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
    merged: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class ChannelGroup:
    """Gateable sites whose output channels lie in one order: to permute or pack one, permute all.

    The group is a line of channels, and each site covers a stretch of it. Where the stretches of two sites overlap,
    they hold the same channels and must share their order; a concatenation puts stretches side by side.

    Attributes:
        offsets: Position of each site's first channel in the group, by site name.
        channels: Length of the line.
        ties: Graph nodes that tie the sites: residual sums, products, concatenations, depthwise convolutions.
        declined: Why the channels cannot be put into another order; None if they can.
    """

    offsets: Mapping[str, int]
    channels: int
    ties: tuple[str, ...] = ()
    declined: str | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in execution order."""
        return tuple(self.offsets)


class SiteGraph:
    """Sites and their dependence: an edge a → b where b reads a value that a produced, directly or not.

    Args:
        sites: Sites in execution order.
        edges: Pairs of site names, only between sites with no other site in between.
        multiplicative_depth: Multiplications on the longest path through the model; see
            :func:`autorep_fx.passes.site_graph.build_site_graph`.
        depths: Multiplications on the longest path from an input to each site's output, the site's own included.
        ranges: Smallest and largest input of each site on the samples that were looked at, where known.
        channel_groups: Sites tied by their channels; every gateable site is in one, those that are not tied alone.
    """

    def __init__(
        self, sites: Iterable[Site], edges: Iterable[tuple[str, str]], *, multiplicative_depth: int,
        depths: Mapping[str, int] | None = None, ranges: Mapping[str, tuple[float, float]] | None = None,
        channel_groups: Iterable[ChannelGroup] = (),
    ) -> None:  # fmt: skip
        self.sites = {site.name: site for site in sites}
        self.multiplicative_depth = multiplicative_depth
        self.depths: Mapping[str, int] = dict(depths or {})
        self.ranges: Mapping[str, tuple[float, float]] = dict(ranges or {})
        self.channel_groups = tuple(channel_groups)
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        self.graph.add_nodes_from(self.sites)
        self.graph.add_edges_from(edges)
        self.levels: Mapping[str, int] = self._levels()

    def _levels(self) -> dict[str, int]:
        """Position of each site on the longest chain that ends at it, from 1."""
        levels: dict[str, int] = {}
        for name in nx.topological_sort(self.graph):
            levels[name] = 1 + max((levels[before] for before in self.graph.predecessors(name)), default=0)
        return {name: levels[name] for name in self.sites}

    @property
    def comparison_depth(self) -> int:
        """Sites on the longest chain: under MPC they run one after the other and set the rounds."""
        return max(self.levels.values(), default=0)
