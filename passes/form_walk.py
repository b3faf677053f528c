"""The walk that gives every value of a graph its form, and linear layers the scales and shifts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.cost.dependence import input_dependent, operator_name
from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.form_rules import affine_of, carried, carries, needs_no_shift
from autorep_fx.passes.form_wishes import scale_wishes
from autorep_fx.passes.forms import FORM_KEY, Form, GateForms, note, same_scale
from autorep_fx.passes.gate_forms import Kind, natural_form, wished_shift
from autorep_fx.passes.graphs import Constants, drop_unused_buffers, finish, node_shape
from autorep_fx.passes.insert_gates import gate_of
from autorep_fx.passes.linear_ops import LinearOp, free_name, is_linear
from autorep_fx.passes.shapes import record_missing_shapes
from autorep_fx.passes.shift_paths import ShiftPaths
from autorep_fx.passes.stored_values import StoredValues
from autorep_fx.passes.sum_scales import SumScales, left_alone

__all__ = ["FormWalk"]

aten = torch.ops.aten
_HOLDER = "autorep_absorbed"


class FormWalk:
    """Goes through a graph once, in order, by the rules that :class:`AbsorbAffinePass` lists.

    Args:
        module: Graph with gates, its shapes recorded; its linear operations are rewritten in place.
        conditioning: Largest √|c2|·|h| at which a square is completed.
    """

    def __init__(self, module: fx.GraphModule, conditioning: float) -> None:
        self.module, self.graph, self.conditioning = module, module.graph, conditioning
        self.dependent = input_dependent(module.graph.nodes)
        self.ops = {node: LinearOp(module, node) for node in module.graph.nodes if is_linear(module, node)}
        self.gates = {node: gate for node in module.graph.nodes if (gate := gate_of(module, node)) is not None}
        self.affine = {
            node: found for node in module.graph.nodes
            if node.op == "call_function" and node in self.dependent and (found := affine_of(module, node)) is not None
        }  # fmt: skip
        self.wishes = scale_wishes(module, self.ops, self.gates, self.affine)
        self.sums = SumScales(module, self.ops)
        self.paths = ShiftPaths(self.ops, self.affine)
        self.values = StoredValues(module)
        self.forms = self.values.forms
        self.modified = False

    def visit(self, node: fx.Node) -> None:
        """Give a node the form that it leaves its output in, then move its shift to where it costs nothing."""
        if node.op == "placeholder" or node not in self.dependent:
            return
        form = self._form(node)
        if form is not None:
            self.forms[node] = form
        self._settle(node)
        if node in self.forms and self.forms[node].is_identity:
            del self.forms[node]

    def _form(self, node: fx.Node) -> Form | None:
        if node in self.ops:
            return self._linear(node, self.ops[node])
        if node in self.gates and not isinstance(self.gates[node], GatedPool):
            return self._gate(node, self.gates[node])
        if node in self.affine:
            x, axis, factor, addend = self.affine[node]
            return self.values.given(node, x, axis, len(factor)).then(factor, addend)
        if not any(source in self.forms for source in node.all_input_nodes):
            return None
        if node.target is aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
            return self._sum(node)
        if node.target is aten.cat.default:
            return self._joined(node)
        if carries(node) and node.args[0] in self.forms:
            form = carried(node, self.forms[node.args[0]])  # type: ignore[index]
            if form is not None:
                return form
        for source in node.all_input_nodes:  # rule 7
            self.values.true(node, source, _reader(node))
        return None

    def _linear(self, node: fx.Node, op: LinearOp) -> Form:
        """Rule 2."""
        x = node.args[0]
        assert isinstance(x, fx.Node)
        given = self.values.given(node, x, op.axis, op.inputs)
        if bool(given.shift.any()) and not op.is_uniform:
            wanted = Form(given.axis, _usable(given.scale), torch.zeros_like(given.shift))
            self.values.restore(node, x, wanted, "a convolution that reads it pads with zeros")
            given = wanted
        if not given.is_identity:
            op.take_input(given.scale, given.shift)
        scale = self.sums.taken_over(node, self.forms, _filled(self.wishes.get(node), 1.0, op.outputs))
        op.give_output(scale)
        if all(user in self.ops or user in self.gates for user in node.users):
            constant = op.constant_outputs()
            return Form(op.axis, torch.where(constant, 0.0, scale), torch.where(constant, op.bias, 0.0))
        return Form(op.axis, scale, torch.zeros_like(scale))

    def _gate(self, node: fx.Node, gate: GatedActivation) -> Form:
        """Rules 3 and 4."""
        axis, channels = gate.site.channel_axis + 1, gate.site.channels
        x: Any = node.args[0]
        given = self.values.given(node, x, axis, channels)
        natural = natural_form(gate, given)
        scale = _filled(self.wishes.get(node), torch.nan, channels)
        scale = torch.where(scale.isnan(), natural.out.scale, scale)
        if self.sums.is_free(node):
            scale = left_alone(scale, natural)
        shift = natural.out.shift
        refusing = [user for user in node.users if self._refuses_shift(user, node)]
        if refusing and bool(shift.any()):
            note(self.module, gate.site.name, f"the constant of the polynomial is added, since {_reader(refusing[0])}")
            scale, shift = _usable(scale), torch.zeros_like(shift)
        if bool((~same_scale(scale, natural.out.scale) & (natural.kinds == Kind.SQUARE)).any()):
            note(self.module, gate.site.name, "the scale of the polynomial is multiplied, since a sum needs another")
        made = Form(axis, scale, shift)
        if not (given.is_identity and made.is_identity):
            node.meta[FORM_KEY] = GateForms(given, made)
            self.modified = True
        return made

    def _refuses_shift(self, user: fx.Node, node: fx.Node) -> bool:
        if user in self.ops:
            return not self.ops[user].is_uniform
        if user in self.gates:
            return isinstance(self.gates[user], GatedPool)
        if user in self.affine or user.target in (aten.add.Tensor, aten.cat.default):
            return False
        return not carries(user) or needs_no_shift(user)

    def _sum(self, node: fx.Node) -> Form | None:
        """Rule 5."""
        sources: list[Any] = list(node.args)
        forms = [self.forms.get(source) for source in sources]
        known = next(form for form in forms if form is not None)
        axis, channels, rank = known.axis, len(known.scale), len(node_shape(node) or ())
        shapes = [node_shape(source) if isinstance(source, fx.Node) else None for source in sources]
        fits = all(s is not None and len(s) == rank and s[axis] == channels for s in shapes)
        if not fits or any(form is not None and form.axis != axis for form in forms):
            for source in node.all_input_nodes:
                self.values.true(node, source, "a sum broadcasts it")
            return None
        scale = known.scale
        if any(not bool(same_scale((form or Form.identity(axis, channels)).scale, scale).all()) for form in forms):
            scale = _filled(self.wishes.get(node), 1.0, channels)
            for source, form in zip(sources, forms, strict=True):
                own = form or Form.identity(axis, channels)
                self.forms.setdefault(source, own)
                if not bool(same_scale(own.scale, scale).all()):
                    wanted = Form(axis, scale, own.shift)
                    self.values.restore(node, source, wanted, "a sum adds values of other scales")
        return Form(axis, scale, sum((form.shift for form in forms if form is not None), torch.zeros_like(scale)))

    def _joined(self, node: fx.Node) -> Form | None:
        """Rule 6, for a concatenation."""
        parts: Any = node.args[0]
        axis = argument(node, 1, "dim", 0) % len(node_shape(node) or (0,))
        known = {form.axis for part in parts if (form := self.forms.get(part)) is not None}
        if known != {axis}:
            for part in set(parts):
                self.values.true(node, part, "it is joined along another axis")
            return None
        forms = [self.forms.get(part) or Form.identity(axis, int((node_shape(part) or ())[axis])) for part in parts]
        return Form(axis, torch.cat([form.scale for form in forms]), torch.cat([form.shift for form in forms]))

    # Shifts that go back into biases.

    def _settle(self, node: fx.Node) -> None:
        """Give a value the shift that its readers wish, where some linear operation before it can add that."""
        form = self.forms.get(node)
        wish = self._wish(node, form)
        if wish is None:
            return
        if form is None:
            gate = next(self.gates[user] for user in node.users if user in self.gates)
            form = Form.identity(gate.site.channel_axis + 1, gate.site.channels)
        amount = torch.where(wish.isnan() | (form.scale == 0), 0.0, form.shift - wish)
        if bool(amount.any()) and self.paths.can_add(node, form.axis):
            self.paths.add(node, amount, form.axis)
            self.forms[node] = Form(form.axis, form.scale, torch.where(amount == 0, form.shift, wish))

    def _wish(self, node: fx.Node, form: Form | None) -> Tensor | None:
        """``(C,)``, NaN where it does not matter; None where nobody wishes anything."""
        if any(self._refuses_shift(user, node) for user in node.users):
            return None if form is None else torch.zeros_like(form.shift)
        for user in node.users:
            gate = self.gates.get(user)
            if gate is None or user.args[0] is not node:
                continue
            if form is None or (form.axis, len(form.scale)) == (gate.site.channel_axis + 1, gate.site.channels):
                refused = any(self._refuses_shift(reader, user) for reader in user.users)
                return wished_shift(gate, self.conditioning, true_output=refused)
        return None

    def finish(self) -> bool:
        """Write the new weights and drop what computes nothing; returns whether anything changed."""
        names, constants = Counter[str](), Constants(self.module)
        changed = (
            self.modified or self.values.restored or bool(self.affine) or any(op.changed for op in self.ops.values())
        )
        for node in list(self.ops):
            op = self.ops.pop(node)  # and with it the old weight
            if op.changed:
                old = node.args[1:3]
                op.finish(free_name(self.module, _HOLDER, op.name, names))
                for value in dict.fromkeys(old):
                    constants.release(value)
        for node in self.affine:
            node.replace_all_uses_with(next(n for n in node.all_input_nodes if n.op != "get_attr"))
        if changed:
            self.graph.eliminate_dead_code()
            drop_unused_buffers(self.module)
            finish(self.module)
            record_missing_shapes(self.module)
        return changed


def _reader(node: fx.Node) -> str:
    """What reads true values."""
    if node.op == "output":
        return "it is the model's output"
    name = operator_name(node)
    return f"{name} pads with zeros" if name.startswith("conv") else f"{name or 'a gate'} takes true values"


def _usable(scale: Tensor) -> Tensor:
    """The scale, but 1 for a constant, which nothing could be added to in a scale of 0."""
    return torch.where(scale == 0, 1.0, scale)


def _filled(wish: Tensor | None, default: float, channels: int) -> Tensor:
    """A wish for ``channels``, with ``default`` where there is none."""
    if wish is None or (wish.dim() and len(wish) != channels):
        return torch.full((channels,), default, dtype=torch.float64)
    return torch.where(wish.isnan(), default, wish).expand(channels).clone()
