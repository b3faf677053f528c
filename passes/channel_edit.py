"""Give channels another order, or leave some out, in every weight and constant that they run through."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.channel_groups import ChannelWalk
from autorep_fx.passes.channel_spaces import Layout
from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.graphs import Constants, add_buffer, drop_unused_buffers, finish, node_shape
from autorep_fx.passes.insert_gates import gate_of
from autorep_fx.passes.linear_ops import LinearOp, constant_of, free_name, is_linear
from autorep_fx.passes.shapes import record_missing_shapes

__all__ = ["ChannelEdit"]

# Operations whose constants have one entry per channel on a known axis.
_NORMS = {"batch_norm", "prelu"}
_ARITHMETIC = {"add", "sub", "mul", "div"}


class ChannelEdit:
    """Picks channels of groups of tied values: a permutation, or fewer than there are.

    Attributes:
        gates: Gates by the node that calls them.
        walk: Where the channels of values are.
        readers: By root of a group: the nodes that make or read its channels.
        orders: By root: the channels that it shall have, each within the stretches that it was in.

    Args:
        module: A gated graph.
        holder: Where new constants go.
    """

    def __init__(self, module: fx.GraphModule, holder: str) -> None:
        self.module, self.holder = module, holder
        self.gates = {node: gate for node in module.graph.nodes if (gate := gate_of(module, node)) is not None}
        self.walk = ChannelWalk(module)
        self.stretches = self.walk.spaces.stretches()
        self.declined = self.walk.spaces.declined()
        self.orders: dict[int, Tensor] = {}
        self.names: Counter[str] = Counter()
        self._constants = Constants(module)
        self.readers: dict[int, list[fx.Node]] = defaultdict(list)
        for node in module.graph.nodes:
            for root in {self.root(value) for value in (node, *node.all_input_nodes)} - {None}:
                self.readers[root].append(node)  # type: ignore[index]

    def root(self, node: fx.Node) -> int | None:
        """The group that the channels of a value are in; None where it has none that can be followed."""
        value = self.walk.values.get(node)
        return self.stretches[value.space][0] if isinstance(value, Layout) else None

    def length(self, root: int) -> int:
        """Channels of a group."""
        return max(stop for other, _, stop in self.stretches.values() if other == root)

    def start(self, node: fx.Node) -> int:
        """Position of a value's first channel in its group."""
        value = self.walk.values[node]
        assert isinstance(value, Layout)
        return self.stretches[value.space][1]

    def gates_in(self, root: int) -> Iterator[tuple[fx.Node, GatedActivation]]:
        """Gates whose channels are in a group."""
        return ((node, gate) for node, gate in self.gates.items() if self.root(node) == root)

    def obstacle(self, root: int) -> str | None:
        """Why the channels of a group cannot be edited."""
        if root in self.declined:
            return self.declined[root]
        for node in self.readers[root]:
            constants = [n for n in node.all_input_nodes if constant_of(self.module, n) is not None]
            known = is_linear(self.module, node) or node in self.gates or operator_name(node) in _NORMS | _ARITHMETIC
            if any((constant_of(self.module, c)).numel() > 1 for c in constants) and not known:  # type: ignore[union-attr]
                return f"{node.name} has constants of its own"
        return None

    def order_of(self, node: Any) -> tuple[Layout, Tensor] | None:
        """Where a value's channels are and their new order; None where they stay."""
        value = self.walk.values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(value, Layout):
            return None
        root, start, stop = self.stretches[value.space]
        if root not in self.orders:
            return None
        order = self.orders[root]
        order = order[(order >= start) & (order < stop)] - start
        if value.block > 1:
            order = (order[:, None] * value.block + torch.arange(value.block)).flatten()
        return value, order

    def finish(self) -> None:
        """Give every node that reads or makes such channels its constants for those that are picked."""
        nodes = {node: None for root in self.orders for node in self.readers[root]}
        for node in nodes:
            if node in self.gates:
                self._permute_gate(node, self.gates[node])
            elif is_linear(self.module, node):
                self._permute_linear(node)
            elif operator_name(node) in _NORMS | _ARITHMETIC:
                self._permute_constants(node)
        self.module.graph.eliminate_dead_code()
        drop_unused_buffers(self.module)
        finish(self.module)
        record_missing_shapes(self.module, [node for node in self.module.graph.nodes if node.op == "get_attr"])

    def _permute_gate(self, node: fx.Node, gate: GatedActivation) -> None:
        found = self.order_of(node)
        if found is None:
            return
        _, order = found
        if gate.kept.shape[gate.site.channel_axis] > 1:
            gate.kept = gate.kept.index_select(gate.site.channel_axis, order)
        gate.raw_coefficients = nn.Parameter(gate.raw_coefficients.detach()[:, order])
        gate.fitted, gate.mean, gate.std = gate.fitted[:, order], gate.mean[order], gate.std[order]
        if gate.parameter is not None and gate.parameter.numel() > 1:
            gate.parameter = gate.parameter[order]
            self._replace(node, 1, 0, order)

    def _permute_linear(self, node: fx.Node) -> None:
        op = LinearOp(self.module, node)
        made, given = self.order_of(node), self.order_of(node.args[0])
        depthwise = op.groups > 1  # its channels are those of its input
        if made is not None:
            self._replace(node, 1, 1 if op.transposed and not depthwise else 0, made[1])
            self._replace(node, 2, 0, made[1])
            if depthwise:
                node.update_arg(6, len(made[1]))
        if given is not None and not depthwise:
            self._replace(node, 1, 0 if op.transposed else 1, given[1])

    def _permute_constants(self, node: fx.Node) -> None:
        found = self.order_of(node)
        if found is None:
            return
        layout, order = found
        rank = len(node_shape(node) or ())
        for position, given in enumerate(node.args):
            constant = constant_of(self.module, given)
            if constant is None:
                continue
            axis = 0 if operator_name(node) in _NORMS else layout.axis - rank + constant.dim()
            if axis >= 0 and constant.dim() and constant.shape[axis] == layout.channels * layout.block:
                self._replace(node, position, axis, order)

    def _replace(self, node: fx.Node, position: int, axis: int, order: Tensor) -> None:
        given = argument(node, position, "")
        constant = constant_of(self.module, given)
        if constant is None:
            return
        path = free_name(self.module, self.holder, str(given.target).replace(".", "_"), self.names)
        with self.module.graph.inserting_before(node):
            buffer = self.module.graph.get_attr(
                add_buffer(self.module, path, constant.index_select(axis, order).contiguous())
            )
        buffer.meta = {key: value for key, value in given.meta.items() if key != "val"}
        node.update_arg(position, buffer)
        self._constants.release(given)
