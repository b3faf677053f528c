"""Build the :class:`SiteGraph` of a canonical graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.passes.channel_groups import channel_groups
from autorep_fx.passes.graphs import SITE_KEY, sites_of
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.sites import SiteGraph

__all__ = ["build_site_graph", "site_ranges"]

_LINEAR = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
    "linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "einsum",
}  # fmt: skip
_PRODUCTS = {"mul", "div", "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d",
             "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pow", "square"}  # fmt: skip


def build_site_graph(
    module: fx.GraphModule, *, degree: int = 2, ranges: Mapping[str, tuple[float, float]] | None = None
) -> SiteGraph:
    """Dependence of sites, their channel groups, and the depth if every gateable site became its polynomial.

    Multiplicative depth counts multiplications on the longest path, by public weights too, as a levelled HE scheme
    does: 1 for a linear operation, an average or a product, 0 for a batch norm that folds into the linear operation
    before it (1 otherwise), and the degree for a polynomial evaluated by Horner's rule. The depth of a site is that of
    its output, counted from the model's input; the depth of the graph is that of its deepest node.

    Args:
        module: Canonical graph.
        degree: Degree of the polynomials.
        ranges: What :func:`site_ranges` measured, to be kept beside the sites.
    """
    nearest: dict[fx.Node, frozenset[str]] = {}
    depth: dict[fx.Node, int] = {}
    depths: dict[str, int] = {}
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
        if site is not None:
            depths[site.name] = depth[node]
    return SiteGraph(
        sites_of(module), sorted(edges), multiplicative_depth=max(depth.values(), default=0), depths=depths,
        ranges=ranges, channel_groups=channel_groups(module),
    )  # fmt: skip


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


def site_ranges(module: fx.GraphModule, inputs: ExampleInputs) -> dict[str, tuple[float, float]]:
    """Smallest and largest input of each site on these inputs, for the sites that read one value.

    Args:
        module: Canonical graph, in eval mode.
        inputs: Samples to run it on, once.
    """
    recorder = _Ranges(module)
    specification = getattr(module.graph._codegen, "pytree_info", None)
    kwargs = dict(inputs.kwargs)
    if specification is not None and kwargs:  # in the order of the captured call
        kwargs = {name: kwargs[name] for name in specification.in_spec.children()[1].context}
    with torch.no_grad():
        recorder.run(*pytree.tree_leaves((inputs.args, kwargs)), enable_io_processing=False)
    return recorder.found


class _Ranges(fx.Interpreter):
    """Runs a graph and notes what goes into its sites."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        site = n.meta.get(SITE_KEY)
        sources = [node for node in n.all_input_nodes if node.op != "get_attr"]
        if site is not None and len(sources) == 1:
            value = self.env[sources[0]]
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                self.found[site.name] = (float(value.min()), float(value.max()))
        return super().run_node(n)
