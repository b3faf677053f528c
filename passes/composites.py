"""Activations that a model writes out as several operations: found by what they compute, not by how.

An expression of one value is evaluated at many points in float64. Where it has the values of a canonical call of the
kinds table, it is that call: ``x·sigmoid(x)`` is SiLU, and a GELU is found in each of the ways it is written by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep_fx.cost.fx_count import kind_of, operator_name
from autorep_fx.kinds import KINDS, ActivationKind

__all__ = ["CanonicalCall", "canonical_call", "composed_kind"]

# Dense where activations bend, and far out where only their limits are left.
_POINTS = torch.cat([torch.linspace(-9, 9, 289), torch.tensor([-300.0, -80.0, -25.0, 25.0, 80.0, 300.0])]).double()
# Constants such as √(2/π) are written with ten digits in places. Different activations differ by far more.
_TOLERANCE = 1e-9
# Rounding of what is 0 in one form and a difference in another.
_ZERO = 1e-15
# Operations of the longest known form, the GELU by tanh, and a few to spare.
_LONGEST = 12
_POLYNOMIAL = {"add", "sub", "rsub", "mul", "div", "neg", "pow", "square", "zeros_like", "ones_like", "full_like"}
# The activations of the table apart.
_BENDING = {
    "erf", "exp", "expm1", "log", "log1p", "clamp", "clamp_min", "clamp_max", "log_sigmoid", "maximum", "minimum",
    "abs", "where", "gt", "ge", "lt", "le", "reciprocal", "masked_fill",
}  # fmt: skip
# What torch.export puts between a constant in the code and its use.
_OF_CONSTANTS = {"lift_fresh_copy", "detach"}


@dataclass(frozen=True)
class CanonicalCall:
    """A call of a kind's canonical operation.

    Attributes:
        target: The ATen overload.
        args: Positional arguments after the input.
        kwargs: Keyword arguments, for what the schema takes by keyword only.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def canonical_call(kind: ActivationKind, arguments: tuple[Any, ...]) -> CanonicalCall:
    """The call of ``kind`` with extra ``arguments``, in the order of its schema."""
    target: Any = torch.ops
    for part in kind.target.split("."):
        target = getattr(target, part)
    named = list(zip(target._schema.arguments[1:], arguments, strict=False))
    keywords = {argument.name: value for argument, value in named if argument.kwarg_only}
    return CanonicalCall(target, tuple(value for argument, value in named if not argument.kwarg_only), keywords)


def composed_kind(
    module: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]
) -> tuple[fx.Node, CanonicalCall] | None:
    """The value and the canonical call that ``node`` and the operations before it together are; None for none.

    Operations are taken in from the last to the first. Whenever all that is left outside is one value, what was
    taken in is an expression of it. Results that are used elsewhere too end the search: they would stay.

    Args:
        module: The graph's module, which holds constants.
        node: The last operation.
        order: Position of every node of the graph.
    """
    inside: list[fx.Node] = []
    outside = {node}
    while len(inside) < _LONGEST:
        last = max(outside, key=order.__getitem__)
        if not _can_take_in(last, node, inside):
            return None
        inside.append(last)
        outside.remove(last)
        outside.update(n for n in last.all_input_nodes if _constant(module, n) is None)
        if not outside:
            return None
        alone = len(inside) == 1 and kind_of(node) is not None  # it has its canonical form already
        if len(outside) == 1 and not alone and any(_bends(n) for n in inside):
            [source] = outside
            call = _match(module, inside, source)
            if call is not None and _same_shape(source, node):
                return source, call
    return None


def _can_take_in(candidate: fx.Node, last: fx.Node, inside: list[fx.Node]) -> bool:
    known = operator_name(candidate) in _POLYNOMIAL or _bends(candidate) or _of_a_mask(candidate)
    if not known or not _same_shape(candidate, last):
        return False
    return candidate is last or all(user in inside for user in candidate.users)


def _of_a_mask(node: fx.Node) -> bool:
    """Whether truth values are turned into numbers, as in ``x * (x > 0).float()``."""
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    return operator_name(node) in ("to", "_to_copy") and isinstance(value, Tensor) and value.dtype == torch.bool


def _bends(node: fx.Node) -> bool:
    return operator_name(node) in _BENDING or kind_of(node) is not None


def _same_shape(one: fx.Node, other: fx.Node) -> bool:
    values = [node.meta.get("val") for node in (one, other)]
    shapes = [str(tuple(value.shape)) for value in values if isinstance(value, Tensor)]
    return len(shapes) == 2 and shapes[0] == shapes[1]  # as texts: comparing symbols could fix them


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """A number that the code holds as a tensor; None for all else, parameters among them."""
    while operator_name(node) in _OF_CONSTANTS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    return (
        value.double()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.numel() == 1
        else None
    )


def _match(module: fx.GraphModule, inside: list[fx.Node], source: fx.Node) -> CanonicalCall | None:
    values: dict[fx.Node, Any] = {source: _POINTS}

    def value(node: fx.Node) -> Any:
        return values[node] if node in values else _constant(module, node)

    for node in reversed(inside):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        assert callable(node.target)
        values[node] = node.target(*args, **kwargs)
    found = values[inside[0]]
    if found.dtype != _POINTS.dtype or found.shape != _POINTS.shape:
        return None
    for kind in KINDS.values():
        for arguments in () if kind.parameters else kind.examples:
            call = canonical_call(kind, arguments)
            if _same_values(found, call.target(_POINTS, *call.args, **call.kwargs)):
                return call
    return None


def _same_values(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the digits of constants; and 0 where 0 is expected, since ``clamp(min=1e-12)`` guards a division."""
    exact = bool((found[expected == 0].abs() <= _ZERO).all())
    return exact and torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
