"""Nominal comparisons of a captured or lowered fx graph, by the same table as the ONNX counter.

Reads nodes by their recorded shapes and names only, so that importing it needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from autorep_fx.cost.nominal import ATEN_FAMILIES, family_comparisons, per_sample
from autorep_fx.kinds import KIND_OF_TARGET

if TYPE_CHECKING:
    from torch import fx

__all__ = ["fixed_comparisons_of", "input_dependent", "node_comparisons", "operator_name", "output_shape"]

# Comparisons per element where they are not one. Canonicalisation turns the first two into an entry of the
# kinds table (these are for other graphs); the others count as their ONNX form computes them.
_PER_ELEMENT = {"hardtanh": 2, "relu6": 2, "hardshrink": 2, "softshrink": 3}
_ELEMENTWISE_OVERLOADS = {"aten.max.other", "aten.min.other"}
_AXIS_POSITION = {"topk": 2}
_ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "fmax": "maximum",
    "fmin": "minimum",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "sgn": "sign",
    "special_expit": "sigmoid",
    "special_log_softmax": "log_softmax",
    "special_logsumexp": "logsumexp",
    "special_softmax": "softmax",
}


def operator_name(node: fx.Node) -> str:
    """``max_pool2d`` for a call of ``aten.max_pool2d.default``; an empty string for any other node.

    Operations with several names have one: ``clamp`` for ``aten.clip.default``.
    """
    text = str(node.target)
    name = text.split(".")[1] if node.op == "call_function" and text.startswith("aten.") else ""
    return _ALIASES.get(name, name)


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's (first) output for one sample, with a leading 1 for the batch; () if unknown."""
    value: Any = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return per_sample(value.shape) if hasattr(value, "shape") else ()


def input_dependent(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes whose value depends on an input of the model; the others are constants, and compare nothing."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def node_comparisons(node: fx.Node) -> int:
    """Nominal comparisons of one node for one sample."""
    kind = KIND_OF_TARGET.get(str(node.target)) if node.op == "call_function" else None
    if kind is not None and _is_floating(node):
        return math.prod(output_shape(node)) * kind.comparisons
    return fixed_comparisons_of(node)


def fixed_comparisons_of(node: fx.Node) -> int:
    """Nominal comparisons of a node that is no activation of the kinds table; 0 for most."""
    name = operator_name(node)
    if name in _PER_ELEMENT:
        return _PER_ELEMENT[name] * math.prod(output_shape(node))
    family = "comparison" if str(node.target) in _ELEMENTWISE_OVERLOADS else ATEN_FAMILIES.get(name)
    if family is None or not node.args or not hasattr(node.args[0], "meta"):
        return 0
    source: Any = node.args[0]
    if not _is_floating(source):
        return 0
    inputs, output = output_shape(source), output_shape(node)
    if name in ("clamp", "clamp_min", "clamp_max"):
        return math.prod(output) * _clamp_sides(node, name)
    window = _window(node.args[1], name) if family == "max_pool" else 1
    length = _length(node, name, inputs) if inputs and family in ("argmax", "softmax", "topk") else 1
    if family == "attention":
        key: Any = node.args[1]
        length = output_shape(key)[-2]
        inputs = (*inputs[:-1], length)
    return family_comparisons(family, inputs, output, window=window, length=length) * _runs(node)


def _runs(node: fx.Node) -> int:
    """2 where both results are used, of values and indices or of both ends: ONNX has one operation for each."""
    if str(node.target) not in ("aten.max.dim", "aten.min.dim", "aten.aminmax.default"):
        return 1
    return max(1, len({user.args[1] for user in node.users if user.users}))


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return bool(getattr(getattr(value, "dtype", None), "is_floating_point", False))


def _window(kernel: Any, name: str) -> int:
    sides = kernel if isinstance(kernel, (tuple, list)) else (kernel,)
    rank = int(name[-2])
    return math.prod(sides) if len(sides) == rank else int(sides[0]) ** rank


def _length(node: fx.Node, name: str, inputs: tuple[int, ...]) -> int:
    """Elements of the axis that is run over; all of them for an ``argmax()`` without one."""
    position = _AXIS_POSITION.get(name, 1)
    default = None if name.startswith("arg") and name != "argsort" else -1
    axis: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
    return inputs[axis] if isinstance(axis, int) else math.prod(inputs)


def _clamp_sides(node: fx.Node, name: str) -> int:
    if name != "clamp":
        return 1
    low: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    return (low is not None) + (high is not None)
