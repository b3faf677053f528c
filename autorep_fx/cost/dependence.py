"""What operations are called, and which values depend on an input of the model: the others are public.

Reads nodes by their names only, so that importing it needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx

__all__ = ["input_dependent", "is_secret", "operator_name"]

# Results that take only their shape from a value.
_LIKE = {
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "sym_size",
}  # fmt: skip
_ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "divide": "div",
    "true_divide": "div",
    "fix": "trunc",
    "fmax": "maximum",
    "fmin": "minimum",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "max_pool1d_with_indices": "max_pool1d",
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


def input_dependent(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes whose value depends on an input of the model; the others are constants, and compare nothing.

    Sizes are public, and so is what is made from them alone.
    """
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or (_passes_on(node) and any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def is_secret(value: Any) -> bool:
    """Whether an argument of a node depends on an input of the model."""
    waiting, seen = [value] if hasattr(value, "all_input_nodes") else [], set()
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        if node not in seen and _passes_on(node):
            seen.add(node)
            waiting += node.all_input_nodes
    return False


def _passes_on(node: fx.Node) -> bool:
    return operator_name(node) not in _LIKE
