"""Build the :class:`SiteGraph` of a canonical graph."""

from __future__ import annotations

from torch import fx

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.passes.graphs import SITE_KEY, sites_of
from autorep_fx.sites import SiteGraph

__all__ = ["build_site_graph"]

_LINEAR = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
    "linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "einsum",
}  # fmt: skip
_PRODUCTS = {"mul", "div", "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d",
             "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pow", "square"}  # fmt: skip


def build_site_graph(module: fx.GraphModule, *, degree: int = 2) -> SiteGraph:
    """Dependence of sites, and the multiplicative depth if every gateable site became its polynomial.

    Multiplicative depth counts multiplications on the longest path, by public weights too, as a levelled HE scheme
    does: 1 for a linear operation, an average or a product, 0 for a batch norm that folds into the linear operation
    before it (1 otherwise), and the degree for a polynomial evaluated by Horner's rule.

    Args:
        module: Canonical graph.
        degree: Degree of the polynomials.
    """
    nearest: dict[fx.Node, frozenset[str]] = {}
    depth: dict[fx.Node, int] = {}
    edges: set[tuple[str, str]] = set()
    for node in module.graph.nodes:
        before = frozenset().union(*(nearest[n] for n in node.all_input_nodes))
        site = node.meta.get(SITE_KEY)
        if site is not None:
            edges.update((name, site.name) for name in before)
            before = frozenset({site.name})
        nearest[node] = before
        deepest = max((depth[n] for n in node.all_input_nodes), default=0)
        depth[node] = deepest + _levels(node, degree)
    deepest = max(depth.values(), default=0)
    return SiteGraph(sites_of(module), sorted(edges), multiplicative_depth=deepest)


def _levels(node: fx.Node, degree: int) -> int:
    site = node.meta.get(SITE_KEY)
    if site is not None and site.gateable:
        return degree
    name = operator_name(node)
    if name == "batch_norm":
        source = node.args[0]
        folds = isinstance(source, fx.Node) and operator_name(source) in _LINEAR and len(source.users) == 1
        return 0 if folds else 1
    return 1 if name in _LINEAR or name in _PRODUCTS else 0
