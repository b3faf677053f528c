"""Pack channels: kept channels side by side, so that a site is cut apart by slices instead of gathers."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.absorb_affine import gate_of
from autorep_fx.passes.channel_groups import ChannelWalk
from autorep_fx.passes.channel_order import fewest_runs
from autorep_fx.passes.channel_spaces import Layout
from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.forms import note
from autorep_fx.passes.gate_forms import kept_by_channel
from autorep_fx.passes.graphs import add_buffer, finish, node_shape
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.linear_ops import LinearOp, constant_of, free_name, is_linear

__all__ = ["PackChannelsPass"]

_HOLDER = "autorep_packed"
# Operations whose constants have one entry per channel on a known axis.
_NORMS = {"batch_norm", "prelu"}
_ARITHMETIC = {"add", "sub", "mul", "div"}


class PackChannelsPass(Pass):
    """Permutes channels between layers, where whole channels are kept and others replaced.

    1. Sites that residual sums, products and the like tie share one order; values that are joined side by side keep
       their stretches.
    2. Where the kept sets of tied sites are nested, each becomes one run; otherwise the order has the fewest runs that
       were found.
    3. What moves channels about itself, such as a convolution in groups, declines its group, with the reason noted.

    The weights before and behind take the order over; nothing is added to the graph.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Permute every group that gains by it."""
        gates = {node: gate for node in module.graph.nodes if (gate := gate_of(module, node)) is not None}
        if not any(_is_cut(gate) for gate in gates.values()):
            return PassResult(module, modified=False)
        packing = _Packing(module, gates)
        for root in packing.wanting():
            packing.pack(root)
        packing.finish()
        return PassResult(module, modified=packing.modified)


def _is_cut(gate: GatedActivation) -> bool:
    """Whether some whole channels are kept, and all others replaced."""
    kept = kept_by_channel(gate)
    whole = kept.all(1)
    return bool(whole.any()) and not bool(whole.all()) and bool((whole | ~kept.any(1)).all())


class _Packing:
    def __init__(self, module: fx.GraphModule, gates: dict[fx.Node, GatedActivation]) -> None:
        self.module, self.gates = module, gates
        self.walk = ChannelWalk(module)
        self.stretches = self.walk.spaces.stretches()
        self.declined = self.walk.spaces.declined()
        self.orders: dict[int, Tensor] = {}
        self.modified = False
        self.names: Counter[str] = Counter()
        self.readers: dict[int, list[fx.Node]] = defaultdict(list)
        for node in module.graph.nodes:
            for root in {self._root(value) for value in (node, *node.all_input_nodes)} - {None}:
                self.readers[root].append(node)  # type: ignore[index]

    def _root(self, node: fx.Node) -> int | None:
        value = self.walk.values.get(node)
        return self.stretches[value.space][0] if isinstance(value, Layout) else None

    def wanting(self) -> list[int]:
        """Groups with a site whose channels are kept in several runs."""
        found = {}
        for node, gate in self.gates.items():
            root = self._root(node)
            if root is not None and _is_cut(gate):
                found[root] = gate.site.name
        result = []
        for root, name in found.items():
            reason = self.declined.get(root) or self._obstacle(root)
            if reason:
                note(self.module, name, f"its channels stay where they are: {reason}")
            else:
                result.append(root)
        return result

    def _obstacle(self, root: int) -> str | None:
        """A node with constants along these channels that it is not known how to permute."""
        for node in self.readers[root]:
            constants = [n for n in node.all_input_nodes if constant_of(self.module, n) is not None]
            known = is_linear(self.module, node) or node in self.gates or operator_name(node) in _NORMS | _ARITHMETIC
            if any((constant_of(self.module, c)).numel() > 1 for c in constants) and not known:  # type: ignore[union-attr]
                return f"{node.name} has constants of its own"
        return None

    def pack(self, root: int) -> None:
        """Find the order of a group; nothing where the present one is as good."""
        length = max(stop for other, _, stop in self.stretches.values() if other == root)
        edges = {0, length}
        for other, start, stop in self.stretches.values():
            edges |= {start, stop} if other == root else set()
        rows = []
        for node, gate in self.gates.items():
            if self._root(node) == root and _is_cut(gate):
                start = self.stretches[self.walk.values[node].space][1]  # type: ignore[union-attr]
                row = torch.full((length,), -1, dtype=torch.int8)
                row[start : start + gate.site.channels] = kept_by_channel(gate).all(1).to(torch.int8)
                rows.append(row)
        order = fewest_runs(torch.stack(rows), list(pairwise(sorted(edges))))
        if order is not None:
            self.orders[root] = order
            self.modified = True

    def _order(self, node: Any) -> tuple[Layout, Tensor] | None:
        """Where a value's channels are and their new order; None where they stay."""
        value = self.walk.values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(value, Layout):
            return None
        root, start, stop = self.stretches[value.space]
        if root not in self.orders:
            return None
        order = self.orders[root][start:stop] - start
        if value.block > 1:
            order = (order[:, None] * value.block + torch.arange(value.block)).flatten()
        return value, order

    def finish(self) -> None:
        """Give every node that reads or makes permuted channels its constants in the new order."""
        if not self.modified:
            return
        nodes = {node: None for root in self.orders for node in self.readers[root]}
        for node in nodes:
            if node in self.gates:
                self._permute_gate(node, self.gates[node])
            elif is_linear(self.module, node):
                self._permute_linear(node)
            elif operator_name(node) in _NORMS | _ARITHMETIC:
                self._permute_constants(node)
        self.module.graph.eliminate_dead_code()
        finish(self.module)

    def _permute_gate(self, node: fx.Node, gate: GatedActivation) -> None:
        found = self._order(node)
        if found is None:
            return
        _, order = found
        if gate.kept.shape[gate.site.channel_axis] > 1:
            gate.kept = gate.kept.index_select(gate.site.channel_axis, order)
        gate.raw_coefficients = nn.Parameter(gate.raw_coefficients.detach()[:, order])
        if gate.parameter is not None and gate.parameter.numel() > 1:
            gate.parameter = gate.parameter[order]
            self._replace(node, 1, 0, order)

    def _permute_linear(self, node: fx.Node) -> None:
        op = LinearOp(self.module, node)
        made, given = self._order(node), self._order(node.args[0])
        depthwise = op.groups > 1  # its channels are those of its input
        if made is not None:
            self._replace(node, 1, 1 if op.transposed and not depthwise else 0, made[1])
            self._replace(node, 2, 0, made[1])
        if given is not None and not depthwise:
            self._replace(node, 1, 0 if op.transposed else 1, given[1])

    def _permute_constants(self, node: fx.Node) -> None:
        found = self._order(node)
        if found is None:
            return
        layout, order = found
        rank = len(node_shape(node) or ())
        for position, given in enumerate(node.args):
            constant = constant_of(self.module, given)
            if constant is None:
                continue
            axis = 0 if operator_name(node) in _NORMS else layout.axis - rank + constant.dim()
            if axis >= 0 and constant.dim() and constant.shape[axis] == len(order):
                self._replace(node, position, axis, order)

    def _replace(self, node: fx.Node, position: int, axis: int, order: Tensor) -> None:
        given = argument(node, position, "")
        constant = constant_of(self.module, given)
        if constant is None:
            return
        path = free_name(self.module, _HOLDER, str(given.target).replace(".", "_"), self.names)
        with self.module.graph.inserting_before(node):
            buffer = self.module.graph.get_attr(
                add_buffer(self.module, path, constant.index_select(axis, order).contiguous())
            )
        buffer.meta = dict(given.meta)
        node.update_arg(position, buffer)
