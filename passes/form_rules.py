"""How operations that are not linear layers carry the forms of their inputs on, and what scale they would like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.fold_batchnorm import norm_affine
from autorep_fx.passes.forms import Form
from autorep_fx.passes.graphs import FREE_AXES, node_shape
from autorep_fx.passes.linear_ops import constant_of

__all__ = ["affine_of", "carried", "carries", "in_shape", "needs_no_shift"]

_AVERAGES = {
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
}  # fmt: skip
_PLAIN = {"clone", "contiguous", "detach", "alias", "lift_fresh_copy"}
_VIEWS = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"}
# They take the largest of true values where they take that of the stored ones, if scales are positive.
_MONOTONE = {"max_pool1d", "max_pool2d", "max_pool3d", "amax"}
_INTERPOLATIONS = {"upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d"}


def affine_of(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, int, Tensor, Tensor] | None:
    """``(x, axis, factor, addend)`` of a node that scales and shifts the channels of ``x`` by constants, else None.

    A batch norm in inference is one, and arithmetic with plain numbers or with constants per channel.
    """
    shape = node_shape(node)
    if not shape or len(shape) < 2 or not isinstance(shape[1], int):
        return None
    norm = norm_affine(module, node) if node.args else None
    if norm is not None and isinstance(node.args[0], fx.Node):
        return node.args[0], 1, *norm
    if str(node.target) not in ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor"):
        return None
    if node.kwargs or len(node.args) != 2:
        return None
    x, constant = node.args
    name = operator_name(node)
    if name in ("add", "mul") and not _is_computed(x):
        x, constant = constant, x
    if not isinstance(x, fx.Node) or not _is_computed(x) or node_shape(x) != shape:
        return None
    found = _per_channel(module, constant, shape)
    if found is None or (name == "div" and not bool(found[1].all())):
        return None
    axis, values = found
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    factor, addend = {
        "add": (one, values), "sub": (one, -values), "mul": (values, zero), "div": (1 / values, zero),
    }[name]  # fmt: skip
    return x, axis, factor, addend


def _is_computed(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op != "get_attr"


def _per_channel(module: fx.GraphModule, value: Any, shape: Sequence[Any]) -> tuple[int, Tensor] | None:
    """Axis and ``(C,)`` values of a number or of a tensor that varies along one axis after the batch."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 1, torch.full((int(shape[1]),), float(value), dtype=torch.float64)
    tensor = constant_of(module, value)
    if tensor is None or not tensor.is_floating_point() or tensor.dim() > len(shape):
        return None
    wide = (1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape)
    axes = [axis for axis, size in enumerate(wide) if size != 1]
    if len(axes) > 1 or axes == [0]:
        return None
    axis = axes[0] if axes else 1
    return axis, tensor.double().reshape(-1).expand(int(shape[axis])).clone()


def carries(node: fx.Node) -> bool:
    """Whether a node does the same to every channel, so that :func:`carried` may follow a form through it."""
    name = operator_name(node)
    if name == "dropout":
        return argument(node, 2, "train") is False
    if isinstance(node.meta.get("val"), (tuple, list)):  # values and their indices
        return False
    if name in _AVERAGES and argument(node, 6, "divisor_override"):  # a sum over the window, shifts included
        return False
    return name in _AVERAGES | _PLAIN | _VIEWS | _MONOTONE | _INTERPOLATIONS | {"mean", "slice"}


def needs_no_shift(node: fx.Node) -> bool:
    """Whether zeros that a node pads with enter its result."""
    name = operator_name(node)
    padded = name in _AVERAGES and name.startswith("avg") and any(_listed(argument(node, 3, "padding", 0)))
    return padded and argument(node, 5, "count_include_pad", True) is not False


def carried(node: fx.Node, form: Form) -> Form | None:
    """The form of a node's output where its input has ``form``; None where there is none."""
    name = operator_name(node)
    before, after = node_shape(node.args[0]), node_shape(node)  # type: ignore[arg-type]
    if before is None or after is None or (needs_no_shift(node) and bool(form.shift.any())):
        return None
    if name in _VIEWS:
        if any(FREE_AXES in value.meta for value in (node, *node.all_input_nodes)):
            return None
        return in_shape(form, before, after)
    if name in ("mean", "amax"):
        return _reduced(node, form, len(before), len(after), name)
    if name == "slice":
        return _cut(node, form, before)
    if name in _MONOTONE and not bool((form.scale > 0).all()):
        return None
    return form if len(before) == len(after) and form.axis < len(after) else None


def in_shape(form: Form, before: Sequence[Any], after: Sequence[Any]) -> Form | None:
    """The form after a view, whose channels stay one axis or become the leading factor of one."""
    channels = len(form.scale)
    if not all(isinstance(size, int) for size in (*before[1:], *after[1:])):
        return None
    ahead = math.prod(before[1 : form.axis])
    for axis in range(1, len(after)):
        if math.prod(after[1:axis]) == ahead and after[axis] % channels == 0 and after[axis]:
            block = after[axis] // channels
            if math.prod(before[form.axis + 1 :]) != block * math.prod(after[axis + 1 :]):
                return None
            return Form(axis, form.scale.repeat_interleave(block), form.shift.repeat_interleave(block))
    return None


def _reduced(node: fx.Node, form: Form, rank: int, left: int, name: str) -> Form | None:
    axes = argument(node, 1, "dim")
    axes = [axis % rank for axis in ([axes] if isinstance(axes, int) else axes or range(rank))]
    if form.axis in axes or 0 in axes or (name == "amax" and not bool((form.scale > 0).all())):
        return None
    gone = sum(axis < form.axis for axis in axes) if left < rank else 0
    return Form(form.axis - gone, form.scale, form.shift)


def _cut(node: fx.Node, form: Form, before: Sequence[Any]) -> Form | None:
    if argument(node, 1, "dim", 0) % len(before) != form.axis:
        return form
    start, stop = argument(node, 2, "start") or 0, argument(node, 3, "end")
    if not isinstance(start, int) or argument(node, 4, "step", 1) != 1:
        return None
    picked = torch.arange(len(form.scale))[start:stop]
    return Form(form.axis, form.scale[picked], form.shift[picked])


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
