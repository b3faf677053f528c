"""Lower gates: every gate becomes plain operations in which only kept elements reach a comparison."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.passes.graphs import FREE_AXES, SITE_KEY, add_buffer, finish
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.insert_gates import gates_of
from autorep_fx.passes.shapes import record_missing_shapes

__all__ = ["LowerGatesPass"]

aten = torch.ops.aten
# Runs of equal channels up to which slices and one concatenation beat a gather and its inverse.
_MOST_RUNS = 8


class LowerGatesPass(Pass):
    """Replaces each gate with the form that compares only what is kept.

    1. All kept: the plain activation.
    2. All replaced: the polynomial, by Horner's rule.
    3. Whole channels kept: the channels are sliced apart (gathered, where there are many runs of them), each part
       computes its own form, and they are joined again in order.
    4. Single elements kept: the polynomial on the whole tensor; the kept elements are gathered by constant
       indices, activated, and scattered back over it.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Lower every gate, and recompute the recorded shapes."""
        gates = gates_of(module)
        if not gates:
            return PassResult(module, modified=False)
        for node in list(module.graph.nodes):
            if node.op == "call_module" and node.meta.get(SITE_KEY) and node.meta[SITE_KEY].name in gates:
                _Lowering(module, node, gates[node.meta[SITE_KEY].name]).run()
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        finish(module)
        record_missing_shapes(module)
        return PassResult(module, modified=True)

    def ensures(self, result: PassResult) -> None:
        """No gate is left."""
        if gates_of(result.module):
            raise ValueError(f"gates left: {', '.join(gates_of(result.module))}")


class _Lowering:
    """Lowers one gate at one node."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, gate: GatedActivation) -> None:
        self.module, self.graph, self.node, self.gate = module, module.graph, node, gate
        self.axis = gate.site.channel_axis + 1
        self.path = "autorep_lowered." + str(node.target).rpartition(".")[2]

    def run(self) -> None:
        gate, x = self.gate, self.node.args[0]
        assert isinstance(x, fx.Node)
        kept = gate.kept.expand(gate.site.shape)
        by_channel = kept.movedim(gate.site.channel_axis, 0).reshape(gate.site.channels, -1)
        with self.graph.inserting_before(self.node):
            if bool(kept.all()):
                result = self._activation(x)
            elif not bool(kept.any()):
                result = self._polynomial(x, slice(None), "all")
            elif bool((by_channel.all(1) | ~by_channel.any(1)).all()):
                result = self._channels(x, by_channel.all(1))
            else:
                result = self._elements(x, kept)
        result.meta[SITE_KEY] = gate.site
        self.node.replace_all_uses_with(result)
        self.graph.erase_node(self.node)

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {key: value for key, value in self.node.meta.items() if key not in (SITE_KEY, "val")}
        return node

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        return self.graph.get_attr(add_buffer(self.module, f"{self.path}.{name}", value))

    def _activation(self, x: fx.Node, channels: Tensor | None = None) -> fx.Node:
        """The activation of ``x``, whose axis 1 holds ``channels``; of all, for None."""
        operation = self.gate.activation
        parameters: Any = self.node.args[1:]
        if parameters and channels is not None and self.gate.parameter.numel() > 1:  # type: ignore[union-attr]
            [parameter] = parameters
            index = self._buffer(f"channels_from{int(channels[0])}", channels)
            parameters = (self._emit(aten.index_select.default, parameter, 0, index),)
        node = self._emit(operation.target, x, *parameters, *operation.scalars)
        node.kwargs = dict(operation.options)
        return node

    def _polynomial(self, x: fx.Node, channels: Any, label: str) -> fx.Node:
        """Rule 2: ``(c2·x + c1)·x + c0`` on ``channels`` of the coefficients; of the average, for a pool."""
        shape = [1] * len(self.gate.site.shape)
        shape[self.gate.site.channel_axis] = -1
        rows = self.gate.coefficients.detach()[:, channels]
        rows = rows if self.gate.degree < 2 or bool(rows[2].any()) else rows[:2]
        if isinstance(self.gate, GatedPool):
            x = self._emit(self.gate.average.target, x, *self.gate.average.scalars)
        constants = [self._buffer(f"{label}_c{k}", row.reshape(shape)) for k, row in enumerate(rows)]
        if len(constants) == 1:
            sizes: list[Any] = [0, *self.gate.site.shape]
            sizes[self.axis] = rows.shape[1]
            for axis in (0, *self.node.meta.get(FREE_AXES, ())):
                sizes[axis] = self._emit(aten.sym_size.int, x, axis)
            return self._emit(aten.expand.default, constants[0], sizes)
        result = self._emit(aten.mul.Tensor, x, constants[-1])
        for constant in reversed(constants[1:-1]):
            result = self._emit(aten.mul.Tensor, self._emit(aten.add.Tensor, result, constant), x)
        return self._emit(aten.add.Tensor, result, constants[0])

    def _channels(self, x: fx.Node, kept: Tensor) -> fx.Node:
        """Rule 3."""
        edges = (kept[1:] != kept[:-1]).nonzero().flatten().add(1).tolist()
        bounds = [0, *edges, len(kept)]
        if len(bounds) - 1 > _MOST_RUNS:
            return self._gathered_channels(x, kept)
        parts = []
        for start, stop in pairwise(bounds):
            part = self._emit(aten.slice.Tensor, x, self.axis, start, stop)
            if bool(kept[start]):
                parts.append(self._activation(part, torch.arange(start, stop)))
            else:
                parts.append(self._polynomial(part, slice(start, stop), f"from{start}"))
        return self._emit(aten.cat.default, parts, self.axis)

    def _gathered_channels(self, x: fx.Node, kept: Tensor) -> fx.Node:
        order = torch.cat([kept.nonzero().flatten(), (~kept).nonzero().flatten()])
        count = int(kept.sum())
        active = self._emit(aten.index_select.default, x, self.axis, self._buffer("kept", order[:count]))
        rest = self._emit(aten.index_select.default, x, self.axis, self._buffer("replaced", order[count:]))
        polynomial = self._polynomial(rest, order[count:], "rest")
        joined = self._emit(aten.cat.default, [self._activation(active, order[:count]), polynomial], self.axis)
        inverse = self._buffer("order", torch.argsort(order))
        return self._emit(aten.index_select.default, joined, self.axis, inverse)

    def _elements(self, x: fx.Node, kept: Tensor) -> fx.Node:
        """Rule 4. The scatter index is expanded over the batch at run time; ``index_put`` would bake the batch."""
        index = kept.flatten().nonzero().flatten()
        kept_index = self._buffer("kept", index)
        polynomial = self._emit(aten.flatten.using_ints, self._polynomial(x, slice(None), "all"), 1)
        flat = self._emit(aten.flatten.using_ints, x, 1)
        values = self._emit(aten.index_select.default, flat, 1, kept_index)
        active = self._activation(values, index // kept[0].numel())
        rows = self._emit(aten.sym_size.int, x, 0)
        wide = self._emit(aten.expand.default, kept_index, [rows, len(index)])
        written = self._emit(aten.scatter.src, polynomial, 1, wide, active)
        return self._emit(aten.unflatten.int, written, 1, list(self.gate.site.shape))
