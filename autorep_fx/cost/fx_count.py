"""Nominal comparisons of a captured or lowered fx graph, by the same table as the ONNX counter.

Reads nodes by their recorded shapes and names only, so that importing it needs no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from autorep_fx.cost.dependence import input_dependent, is_secret, operator_name
from autorep_fx.cost.nominal import ATEN_FAMILIES, ATEN_PER_ELEMENT, UNCOUNTABLE, family_comparisons, per_sample
from autorep_fx.kinds import KINDS, ActivationKind

if TYPE_CHECKING:
    from torch import fx

__all__ = [
    "bound_arguments", "fixed_comparisons_of", "input_dependent", "kind_of", "node_comparisons", "non_polynomial_name",
    "operator_name", "output_shape", "uncountable_reason",
]  # fmt: skip

_ELEMENTWISE_OVERLOADS = {"aten.max.other", "aten.min.other"}
_AXIS_POSITION = {"topk": 2}
_SIDES = {
    "clamp": ("min", "max"), "clamp_min": ("min",), "clamp_max": ("max",), "hardtanh": ("min_val", "max_val"),
}  # fmt: skip
_ROUNDINGS = {"None": 0, "floor": 1, "trunc": 3}
# Made of comparisons and products, although it has no piecewise-linear form.
_PIECEWISE_QUADRATIC = {"hardswish"}
_NON_POLYNOMIAL = {
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "cosine_similarity", "erf", "erfc",
    "erfinv", "exp", "exp2", "expm1", "group_norm", "gru_cell", "instance_norm", "layer_norm", "lgamma", "log",
    "log10", "log1p", "log2", "log_sigmoid", "log_softmax", "logaddexp", "logcumsumexp", "logsumexp", "lstm_cell",
    "native_group_norm", "native_layer_norm", "reciprocal", "rms_norm", "rnn_tanh_cell", "rsqrt",
    "scaled_dot_product_attention", "sin", "sinc", "sinh", "softmax", "_softmax", "_log_softmax", "sqrt", "std", "tan",
    "xlogy", "glu",
}  # fmt: skip


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's (first) output for one sample, with a leading 1 for the batch; () if unknown."""
    value: Any = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return per_sample(value.shape) if hasattr(value, "shape") else ()


def kind_of(node: fx.Node) -> tuple[ActivationKind, tuple[Any, ...] | None] | None:
    """The activation kind that a node calls under any of its spellings; None where it is no activation.

    With it come the extra arguments of the canonical call; None where the call is canonical as it is.
    """
    target = str(node.target)
    if node.op != "call_function" or not _is_floating(node):
        return None
    for kind in KINDS.values():
        spelling = kind.spellings.get(target)
        if spelling is not None:
            arguments = spelling(bound_arguments(node))
            if arguments is not None:
                return kind, arguments
        elif kind.target == target:
            return kind, None
    return None


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call after its input, by their names in the schema, defaults filled in."""
    names = list(node.target._schema.arguments)[1:]  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in names), node.args[1:], strict=False))
    return {a.name: given.get(a.name, node.kwargs.get(a.name, a.default_value)) for a in names}


def node_comparisons(node: fx.Node) -> int:
    """Nominal comparisons of one node for one sample."""
    found = kind_of(node)
    return math.prod(output_shape(node)) * found[0].comparisons if found else fixed_comparisons_of(node)


def fixed_comparisons_of(node: fx.Node) -> int:
    """Nominal comparisons of a node that is no activation of the kinds table; 0 for most."""
    name = operator_name(node)
    if not node.args or not hasattr(node.args[0], "meta"):
        return 0
    source: Any = node.args[0]
    if not _is_floating(source):
        return 0
    inputs, output = output_shape(source), output_shape(node)
    elements = math.prod(output)
    if name in ATEN_PER_ELEMENT:
        return ATEN_PER_ELEMENT[name] * elements
    if str(node.target).endswith("_mode"):  # a division whose result is made whole
        return _ROUNDINGS[str(node.kwargs.get("rounding_mode"))] * elements
    family = "comparison" if str(node.target) in _ELEMENTWISE_OVERLOADS else ATEN_FAMILIES.get(name)
    if family is None or (family == "cast" and _is_floating(node)):
        return 0
    if family == "norm":
        return _norm_comparisons(node, math.prod(inputs), elements)
    if name in _SIDES:
        return elements * _sides(node, name)
    window = _window(node.args[1], name) if family == "max_pool" else 1
    length = _length(node, name, inputs) if inputs and family in ("argmax", "softmax", "topk") else 1
    if family == "attention":
        key: Any = node.args[1]
        length = output_shape(key)[-2]
        inputs = (*inputs[:-1], length)
    return family_comparisons(family, inputs, output, window=window, length=length) * _runs(node)


def _norm_comparisons(node: fx.Node, given: int, elements: int) -> int:
    """Absolute values, and a maximum or minimum of them; powers of even order need neither."""
    order: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("ord", 2)
    if math.isinf(order):
        return given + max(given - elements, 0)
    return 0 if order and order % 2 == 0 else given


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


def _sides(node: fx.Node, name: str) -> int:
    """1 where one of the bounds is absent or infinite."""
    bounds = bound_arguments(node)
    return sum(_bounds_something(bounds.get(key)) for key in _SIDES[name])


def _bounds_something(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isinf(value))


def uncountable_reason(node: fx.Node) -> str | None:
    """Why what a node compares cannot be counted; None for all that can."""
    name = operator_name(node)
    if name in UNCOUNTABLE:
        # On truth values and integers there is nothing to compare in secret.
        return UNCOUNTABLE[name] if any(_is_floating(value) for value in node.all_input_nodes) else None
    if name == "grid_sampler" and is_secret(node.args[1]):
        return "samples at secret positions, which cannot be counted"
    if name.startswith("adaptive_max_pool"):
        inputs, output = output_shape(node.all_input_nodes[0]), output_shape(node)
        if any(taken % given for taken, given in zip(inputs, output, strict=True) if given):
            return "has windows of different sizes, which ONNX cannot express"
    return None


def non_polynomial_name(node: fx.Node) -> str | None:
    """What a node computes that is neither polynomial nor a comparison, such as ``layer_norm``; None for the rest.

    A site that gates replace, or can replace, is not among them; a fixed softmax is: its exponentials and its division
    stay, besides the comparisons that are counted.
    """
    name, found = operator_name(node), kind_of(node)
    if found is not None:
        smooth = found[0].piecewise is None and name not in _PIECEWISE_QUADRATIC
        site = node.meta.get("site")
        return name if smooth and (site is None or not site.gateable) else None
    if name == "div":
        return "division" if is_secret(node.args[1]) else None
    if name == "pow":
        exponent: Any = node.args[1]
        whole = isinstance(exponent, (int, float)) and exponent >= 0 and float(exponent).is_integer()
        return None if whole else "pow"
    if name == "linalg_vector_norm":
        order: Any = node.args[1] if len(node.args) > 1 else 2
        return None if order in (0, 1) or math.isinf(order) else name
    if name == "batch_norm":
        return name if node.args[5] is True else None
    return name if name in _NON_POLYNOMIAL else None
