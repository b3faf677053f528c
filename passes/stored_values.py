"""Values in the forms that the graph stores them in, and how a reader gets one in another form."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx

from autorep_fx.passes.forms import FORM_KEY, Form, along, note, same_scale
from autorep_fx.passes.graphs import SITE_KEY, add_buffer, node_shape
from autorep_fx.passes.linear_ops import free_name

__all__ = ["StoredValues"]

aten = torch.ops.aten
_HOLDER = "autorep_restored"


class StoredValues:
    """Forms by node.

    Attributes:
        forms: The form of every value that is not stored as it is.
        restored: Whether any reader needed a product or a sum.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.forms: dict[fx.Node, Form] = {}
        self.restored = False
        self._found: dict[tuple[fx.Node, bytes], fx.Node] = {}
        self._names: Counter[str] = Counter()

    def given(self, reader: fx.Node, x: fx.Node, axis: int, channels: int) -> Form:
        """The form of an input whose channels lie on ``axis``; another axis is undone first."""
        form = self.forms.get(x)
        if form is not None and (form.axis, len(form.scale)) != (axis, channels):
            self.true(reader, x, "a layer reads another axis as channels")
            form = None
        return Form.identity(axis, channels) if form is None else form

    def true(self, reader: fx.Node, x: fx.Node, reason: str) -> None:
        """Let ``reader`` read the true value of ``x``."""
        if x in self.forms:
            form = self.forms[x]
            self.restore(reader, x, Form.identity(form.axis, len(form.scale)), reason)

    def restore(self, reader: fx.Node, x: fx.Node, wanted: Form, reason: str) -> None:
        """Let ``reader`` read ``x`` in another form, by a product and a sum as needed."""
        form = self.forms[x]
        key = (x, wanted.scale.numpy().tobytes() + wanted.shift.numpy().tobytes())
        if key not in self._found:
            factor, addend = form.scale / wanted.scale, (form.shift - wanted.shift) / wanted.scale
            with self.module.graph.inserting_before(reader):
                result = self._times(x, factor, addend, form.axis)
            self._found[key] = result
            if result is not x:
                note(self.module, x.name, reason)
                self.restored = True
        reader.replace_input_with(x, self._found[key])

    def _times(self, x: fx.Node, factor: Tensor, addend: Tensor, axis: int) -> fx.Node:
        value, rank = x.meta["val"], len(node_shape(x) or ())
        scaled = not bool(same_scale(factor, torch.ones_like(factor)).all())
        steps = [(aten.mul.Tensor, factor, scaled), (aten.add.Tensor, addend, bool(addend.any()))]
        result = x
        for target, constant, needed in steps:
            if needed:
                path = free_name(self.module, _HOLDER, f"{x.name}_{target.__name__.split('.')[0]}", self._names)
                buffer = self.module.graph.get_attr(
                    add_buffer(self.module, path, along(constant, axis, rank).to(value.dtype).contiguous())
                )
                result = self.module.graph.call_function(target, (result, buffer))
                result.meta = {**{k: v for k, v in x.meta.items() if k not in (SITE_KEY, FORM_KEY)}, "val": value}
        return result
