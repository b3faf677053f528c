"""Drop channels that nothing reads, with their weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.passes.channel_edit import ChannelEdit
from autorep_fx.passes.channel_spaces import Layout
from autorep_fx.passes.forms import FORM_KEY, Form, GateForms
from autorep_fx.passes.gate_forms import kept_by_channel
from autorep_fx.passes.graphs import SITE_KEY
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.linear_ops import LinearOp, is_linear
from autorep_fx.passes.shapes import record_missing_shapes

__all__ = ["DropChannelsPass"]

# Operations that work on as many channels as there are.
_ANY_NUMBER = {
    "add", "sub", "mul", "div", "batch_norm", "relu", "leaky_relu", "prelu", "hardtanh", "dropout", "clone", "flatten",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "cat",
}  # fmt: skip


class DropChannelsPass(Pass):
    """Removes channels of hidden layers.

    1. A channel goes if every linear layer that reads it has zeros for it: it was constant, and is in their biases by
       now (:class:`AbsorbAffinePass`), or no one ever used it.
    2. No comparison is dropped: a channel stays where any site keeps an element of it.
    3. Tied values lose the same channels; groups that cannot be edited, or that reach an operation which needs to know
       how many channels there are, stay. At least one channel stays.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Drop what can be, and again what this leaves unused."""
        modified = False
        while _drop(module):
            modified = True
        return PassResult(module, modified)


def _drop(module: fx.GraphModule) -> bool:
    edit = ChannelEdit(module, "autorep_kept")
    for root in list(edit.readers):
        used = None if edit.obstacle(root) else _used(module, edit, root)
        if used is None:
            continue
        used[0] |= not bool(used.any())  # one stays, even of one
        if not bool(used.all()):
            edit.orders[root] = used.nonzero().flatten()
    if not edit.orders:
        return False
    affected = {node for root in edit.orders for node in edit.readers[root]}
    for node in affected:
        gate = edit.gates.get(node)
        if gate is not None:
            found = edit.order_of(node)
            assert found is not None
            _shrink(node, gate, found[1])
    edit.finish()
    for node in module.graph.nodes:  # sizes are other ones now
        if node in affected and node.op == "call_module":
            node.meta["val"] = node.args[0].meta["val"]
        elif node in affected:
            node.meta.pop("val", None)
            record_missing_shapes(module, [node])
    return True


def _shrink(node: fx.Node, gate: GatedActivation, order: Tensor) -> None:
    forms = node.meta.get(FORM_KEY)
    if forms is not None:
        node.meta[FORM_KEY] = GateForms(
            *(Form(f.axis, f.scale[order], f.shift[order]) for f in (forms.given, forms.made))
        )
    site = node.meta[SITE_KEY]
    shape = list(site.shape)
    shape[site.channel_axis] = len(order)
    gate.site = node.meta[SITE_KEY] = replace(site, shape=tuple(shape))


def _used(module: fx.GraphModule, edit: ChannelEdit, root: int) -> Tensor | None:
    """Which channels of a group something reads or keeps; None where they cannot be dropped."""
    used = torch.zeros(edit.length(root), dtype=torch.bool)
    for node in edit.readers[root]:
        linear = is_linear(module, node)
        if SITE_KEY in node.meta and node not in edit.gates:
            return None  # comparisons that no gate removes are in the plan
        if not linear and node not in edit.gates and operator_name(node) not in _ANY_NUMBER:
            return None
        if isinstance(edit.gates.get(node), GatedPool):
            return None
        if node in edit.gates:
            start, kept = edit.start(node), kept_by_channel(edit.gates[node]).any(1)
            used[start : start + len(kept)] |= kept
        elif linear and not _mark(edit, LinearOp(module, node), root, used):
            return None
    return used


def _mark(edit: ChannelEdit, op: LinearOp, root: int, used: Tensor) -> bool:
    """Mark the channels that an operation has weights for; False for convolutions in groups."""
    source: Any = op.node.args[0]
    value = edit.walk.values.get(source)
    if not isinstance(value, Layout) or edit.root(source) != root:
        return True
    if op.groups > 1:
        return op.groups == op.inputs == op.outputs  # depthwise: it reads each for itself
    columns = op.weight if op.transposed else op.weight.transpose(0, 1)
    found = (columns != 0).flatten(1).any(1).view(value.channels, value.block).any(1)
    start = edit.start(source)
    used[start : start + value.channels] |= found.cpu()
    return True
