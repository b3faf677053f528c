"""Pack channels: kept channels side by side, and others by what they compute, so that slices cut a site apart."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, fx

from autorep_fx.passes.channel_edit import ChannelEdit
from autorep_fx.passes.channel_order import fewest_runs
from autorep_fx.passes.forms import note
from autorep_fx.passes.gate_forms import foreseen_kinds
from autorep_fx.passes.infra import Pass, PassResult

__all__ = ["PackChannelsPass"]


class PackChannelsPass(Pass):
    """Permutes channels between layers, where a site computes one thing in some channels and another in others.

    1. Sites that residual sums, products and the like tie share one order; values that are joined side by side keep
       their stretches.
    2. Where the kept sets of tied sites are nested, each becomes one run; otherwise the order has the fewest runs that
       were found. Replaced channels are told apart by what they will compute if absorption grants what they wish: a
       square, nothing, or the polynomial as it is.
    3. What moves channels about itself, such as a convolution in groups, declines its group, with the reason noted.

    The weights before and behind take the order over; nothing is added to the graph.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Permute every group that gains by it."""
        edit = ChannelEdit(module, "autorep_packed")
        kinds = {node: foreseen_kinds(gate) for node, gate in edit.gates.items()}
        for root in _wanting(module, edit, kinds):
            _pack(edit, root, kinds)
        if edit.orders:
            edit.finish()
        return PassResult(module, modified=bool(edit.orders))


def _wanting(module: fx.GraphModule, edit: ChannelEdit, kinds: Mapping[fx.Node, Tensor]) -> list[int]:
    """Groups with a site of several kinds of channels."""
    found = {
        root: gate.site.name for node, gate in edit.gates.items()
        if (root := edit.root(node)) is not None and len(kinds[node].unique()) > 1
    }  # fmt: skip
    for root, name in list(found.items()):
        reason = edit.obstacle(root)
        if reason:
            note(module, name, f"its channels stay where they are: {reason}")
            del found[root]
    return list(found)


def _pack(edit: ChannelEdit, root: int, kinds: Mapping[fx.Node, Tensor]) -> None:
    """Find the order of a group; nothing where the present one is as good."""
    length = edit.length(root)
    edges = {edge for other, *stretch in edit.stretches.values() for edge in stretch if other == root}
    rows = []
    for node, gate in edit.gates_in(root):
        start = edit.start(node)
        row = torch.full((length,), -1, dtype=torch.int8)
        row[start : start + gate.site.channels] = kinds[node].to(torch.int8)
        rows.append(row)
    order = fewest_runs(torch.stack(rows), list(pairwise(sorted(edges | {0, length}))))
    if order is not None:
        edit.orders[root] = order
