"""Lower gates: every gate becomes plain operations in which only kept elements reach a comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.passes.cut_sites import CUT_KEY, around_activation, around_polynomial, cut_site
from autorep_fx.passes.form_costs import MOST_RUNS
from autorep_fx.passes.forms import FORM_KEY, Form, GateForms, along, same_scale
from autorep_fx.passes.gate_forms import Kind, NaturalForm, natural_form, runs
from autorep_fx.passes.graphs import FREE_AXES, SITE_KEY, add_buffer, drop_unused_buffers, finish
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.insert_gates import gates_of
from autorep_fx.passes.shapes import record_missing_shapes

__all__ = ["LowerGatesPass"]

aten = torch.ops.aten


class LowerGatesPass(Pass):
    """Replaces each gate with the form that compares only what is kept.

    A gate finds its input and leaves its output in the forms that :class:`AbsorbAffinePass` agreed on with its
    neighbours, or as they are.

    1. A channel that is kept computes the plain activation.
    2. One that is replaced computes a square, nothing at all where it is linear, or the polynomial by Horner's rule,
       and the scale and shift that no neighbour takes.
    3. Channels of different kinds are sliced apart and joined again, or gathered, where there are so many runs that
       this is cheaper by the measured costs.
    4. Where single elements of a channel are kept, these are gathered by constant indices, activated, and scattered
       back over what the others computed.
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
        drop_unused_buffers(module)
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
        self.rank = len(gate.site.shape) + 1
        self.path = "autorep_lowered." + str(node.target).rpartition(".")[2]
        plain = Form.identity(self.axis, gate.site.channels)
        forms = node.meta.get(FORM_KEY, GateForms(plain, plain))
        self.given, self.made = forms.given, forms.made
        self.natural: NaturalForm = natural_form(gate, self.given)

    def run(self) -> None:
        x = self.node.args[0]
        assert isinstance(x, fx.Node)
        with self.graph.inserting_before(self.node):
            elements = self._kept_elements()
            result = self._with_single_elements(x, elements) if len(elements) else self._dense(x)
        if result is not x:
            result.meta[SITE_KEY] = self.gate.site
        self.node.replace_all_uses_with(result)
        self.graph.erase_node(self.node)

    def _kept_elements(self) -> Tensor:
        """Flat positions of kept elements in channels that are not kept as a whole."""
        kept = self.gate.kept.expand(self.gate.site.shape).cpu()
        apart = along(self.natural.kinds != Kind.KEPT, self.axis, self.rank)
        return (kept & apart).flatten().nonzero().flatten()

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {key: value for key, value in self.node.meta.items() if key not in (SITE_KEY, FORM_KEY, "val")}
        return node

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        if value.is_floating_point():
            value = value.to(self.gate.coefficients.dtype)
        return self.graph.get_attr(add_buffer(self.module, f"{self.path}.{name}", value.contiguous()))

    def _affine(self, x: fx.Node, factor: Tensor, addend: Tensor, name: str) -> fx.Node:
        """``factor·x + addend``, where these are constants in the shape of one sample; nothing for 1 and 0."""
        if not bool(same_scale(factor, torch.ones_like(factor)).all()):
            x = self._emit(aten.mul.Tensor, x, self._buffer(f"{name}_scale", factor))
        if bool(addend.any()):
            x = self._emit(aten.add.Tensor, x, self._buffer(f"{name}_shift", addend))
        return x

    def _dense(self, x: fx.Node) -> fx.Node:
        """Rules 1 to 3."""
        kinds = self.natural.kinds
        found = runs(kinds)
        if len(found) == 1:
            return self._part(x, torch.arange(len(kinds)), "all")
        if len(found) > MOST_RUNS:
            return self._gathered(x)
        parts = []
        for start, stop in found:
            part = self._emit(aten.slice.Tensor, x, self.axis, start, stop)
            parts.append(self._part(part, torch.arange(start, stop), f"from{start}"))
        joined = self._emit(aten.cat.default, parts, self.axis)
        joined.meta[CUT_KEY] = cut_site(self.gate, self.natural, self.given, self.made)
        return joined

    def _gathered(self, x: fx.Node) -> fx.Node:
        order = torch.argsort(self.natural.kinds, stable=True)
        parts = []
        for start, stop in runs(self.natural.kinds[order]):
            channels = order[start:stop]
            part = self._emit(aten.index_select.default, x, self.axis, self._buffer(f"channels{start}", channels))
            parts.append(self._part(part, channels, f"gathered{start}"))
        joined = self._emit(aten.cat.default, parts, self.axis)
        return self._emit(aten.index_select.default, joined, self.axis, self._buffer("order", torch.argsort(order)))

    def _part(self, x: fx.Node, channels: Tensor, name: str) -> fx.Node:
        """``x`` holds ``channels`` of one kind, in the form in which the gate finds them."""
        kind = Kind(int(self.natural.kinds[channels[0]]))
        if kind == Kind.KEPT:
            return self._activated(x, channels, channels, name, self.axis, self.rank)
        factor, addend = (value[channels] for value in around_polynomial(self.natural, self.made))
        if kind == Kind.LINEAR:
            return self._scaled(x, factor, addend, name)
        offset = self.natural.offset[channels]
        if kind == Kind.SQUARE and not (bool(offset.any()) and bool((factor != 1).any())):
            other = self._scaled(x, torch.ones_like(offset), offset, f"{name}_offset")
            return self._scaled(self._emit(aten.mul.Tensor, x, other), factor, addend, name)
        scale, shift = self.made.scale[channels], self.made.shift[channels]
        rows = self.natural.polynomial[:, channels] / scale
        rows[0] -= shift / scale
        return self._polynomial(x, rows, name)

    def _scaled(self, x: fx.Node, factor: Tensor, addend: Tensor, name: str) -> fx.Node:
        return self._affine(x, along(factor, self.axis, self.rank), along(addend, self.axis, self.rank), name)

    def _polynomial(self, x: fx.Node, rows: Tensor, name: str) -> fx.Node:
        """``(c2·x + c1)·x + c0`` by Horner's rule; of the average, for a pool."""
        degree = max((k for k in (1, 2) if bool(rows[k].any())), default=1 if self.gate.degree else 0)
        if isinstance(self.gate, GatedPool):
            x = self._emit(self.gate.average.target, x, *self.gate.average.scalars)
        constants = [
            self._buffer(f"{name}_c{k}", along(row, self.axis, self.rank)) for k, row in enumerate(rows[: degree + 1])
        ]
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

    def _activated(self, x: fx.Node, entries: Tensor, channels: Tensor, name: str, axis: int, rank: int) -> fx.Node:
        """Rule 1: the activation of stored values in the stored form of the output.

        Args:
            x: Values whose ``axis`` has one entry per ``entries``.
            entries: The channel of each.
            channels: As ``entries``, for a parameter of the activation.
            name: Of the constants.
            axis: Axis of the entries.
            rank: Axes of ``x``.
        """
        around = around_activation(self.gate, self.given, self.made)
        before, t, after, shift = (along(value[entries], axis, rank) for value in around)
        x = self._activation(self._affine(x, before, t, f"{name}_in"), channels)
        return self._affine(x, after, shift, f"{name}_out")

    def _activation(self, x: fx.Node, channels: Tensor) -> fx.Node:
        """The activation of ``x``, whose axis 1 holds ``channels``."""
        operation = self.gate.activation
        parameters: Any = self.node.args[1:]
        plain = len(channels) == self.gate.site.channels and bool((channels == torch.arange(len(channels))).all())
        if parameters and not plain and self.gate.parameter.numel() > 1:  # type: ignore[union-attr]
            [parameter] = parameters
            index = self._buffer(f"channels_from{int(channels[0])}", channels)
            parameters = (self._emit(aten.index_select.default, parameter, 0, index),)
        node = self._emit(operation.target, x, *parameters, *operation.scalars)
        node.kwargs = dict(operation.options)
        return node

    def _with_single_elements(self, x: fx.Node, index: Tensor) -> fx.Node:
        """Rule 4. The index is expanded over the batch at run time; ``index_put`` would bake the batch.

        ``gather`` reads with the index that ``scatter`` needs anyway; onnxruntime 1.31.1 took half the time of
        ``index_select``, which copies one element at a time (20,873 of 802,816 elements: 155 µs and 317 µs).

        The others are computed from the flat values too, though in their shape: computed from ``x`` itself they would
        stay in onnxruntime's blocks of channels, and two tensors instead of one would have to leave these.
        """
        shape = list(self.gate.site.shape)
        flat = self._emit(aten.flatten.using_ints, x, 1)
        shaped = self._emit(aten.unflatten.int, flat, 1, shape)
        dense = self._dense(shaped)
        polynomial = flat if dense is shaped else self._emit(aten.flatten.using_ints, dense, 1)
        # -1 for the width, so that all sites share the shape that the graph computes.
        rows = self._emit(aten.sym_size.int, x, 0)
        wide = self._emit(aten.expand.default, self._buffer("kept", index), [rows, -1])
        values = self._emit(aten.gather.default, flat, 1, wide)
        channels = along(torch.arange(shape[self.axis - 1]), self.axis, self.rank)
        entries = channels.expand(shape).reshape(-1)[index]
        active = self._activated(values, entries, entries, "kept", 1, 2)
        written = self._emit(aten.scatter.src, polynomial, 1, wide, active)
        return self._emit(aten.unflatten.int, written, 1, shape)
