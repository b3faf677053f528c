"""Nominal comparisons of operations that no gate removes: pooling, reductions, softmax, explicit comparisons.

One table for both graphs: an operation is known by one *family* name, with its ATen and its ONNX spellings, and
each family has one rule. Activations are in :data:`autorep_fx.kinds.KINDS`.

Secret values are fixed-point numbers. So testing two of them for equality is a comparison, as a cast to bool is;
finding an integer part is an exact truncation, which needs the carry of the cut bits, and counts as one too; NaN and
infinity do not exist, and asking for them costs nothing. An operation that ONNX writes as several others counts as
these do. What ONNX cannot write, or writes as a search of data-dependent length, is refused.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence

__all__ = [
    "ATEN_FAMILIES", "ATEN_PER_ELEMENT", "ONNX_FAMILIES", "UNCOUNTABLE", "batch_axis", "evaluate_text",
    "family_comparisons",
    "per_sample",
]  # fmt: skip

# Family → ATen operator names (any overload) and ONNX operators.
_FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "max_pool": (("max_pool1d", "max_pool2d", "max_pool3d"), ("MaxPool",)),
    "adaptive_max_pool": (
        ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        ("GlobalMaxPool",),
    ),
    "max": (("amax", "amin", "aminmax", "max", "min", "logsumexp"), ("ReduceMax", "ReduceMin", "ReduceLogSumExp")),
    "argmax": (("argmax", "argmin"), ("ArgMax", "ArgMin")),
    "topk": (("topk", "sort", "argsort"), ("TopK",)),
    "softmax": (
        ("softmax", "log_softmax", "_softmax", "_log_softmax", "logcumsumexp"), ("Softmax", "LogSoftmax"),
    ),
    "attention": (("scaled_dot_product_attention",), ("Attention",)),
    "norm": (("linalg_vector_norm",), ()),
    "absolute_sum": ((), ("ReduceL1",)),
    "cast": (("to", "_to_copy", "type_as"), ("Cast",)),
    "comparison": (
        ("gt", "ge", "lt", "le", "eq", "ne", "maximum", "minimum", "abs", "sign", "signbit", "clamp", "clamp_min",
         "clamp_max", "hardtanh", "threshold", "xlogy"),
        ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Max", "Min", "Abs", "Sign"),
    ),
    "truncation": (
        ("floor", "ceil", "round", "remainder", "fmod", "floor_divide"), ("Floor", "Ceil", "Round", "Mod"),
    ),
    "other_activation": (("log_sigmoid", "glu", "erf", "rnn_relu_cell", "rnn_tanh_cell"), ("Erf", "ThresholdedRelu")),
}  # fmt: skip
ATEN_FAMILIES = {name: family for family, (names, _) in _FAMILIES.items() for name in names}
ONNX_FAMILIES = {name: family for family, (_, names) in _FAMILIES.items() for name in names}

#: Comparisons per element of ATen operations that ONNX writes as several, each of which compares.
ATEN_PER_ELEMENT = {
    "hardshrink": 2,  # Abs, LessOrEqual
    "softshrink": 3,  # Abs, Greater, Sign
    "trunc": 3,  # Abs, Floor, Sign
    "frac": 3,
    "heaviside": 2,  # Less, Equal
    "isclose": 4,  # Equal, Abs, Abs, LessOrEqual
    "nan_to_num": 2,  # Less, Greater: the signs of the infinities
    "cosine_similarity": 2,  # both norms are clipped from below
    "lstm_cell": 5,  # three sigmoids and two tanh per hidden unit
    "gru_cell": 3,
}

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv, ast.Pow: operator.pow,
}  # fmt: skip
_NO_FORM = "has no ONNX form, so that what it compares cannot be counted"
_SEARCH = "compares in a search whose steps cannot be counted"
_ZERO_TEST = "tests numbers for zero without a countable ONNX form; compare explicitly, as in x != 0"
#: ATen operations that are refused on values that depend on an input, and why.
UNCOUNTABLE = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "renorm"), "compares inside itself, out of reach"),
    **dict.fromkeys(("dist", "msort"), "works across the batch"),
    **dict.fromkeys(("cummax", "cummin", "median", "nanmedian", "kthvalue", "mode", "rrelu"), _NO_FORM),
    **dict.fromkeys(("cdist", "hypot", "copysign", "fractional_max_pool2d", "fractional_max_pool3d"), _NO_FORM),
    **dict.fromkeys(("searchsorted", "bucketize", "quantile", "nanquantile"), _SEARCH),
    **dict.fromkeys(("any", "all", "count_nonzero", "nonzero"), _ZERO_TEST),
    **dict.fromkeys(("logical_not", "logical_and", "logical_or", "logical_xor"), _ZERO_TEST),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), "places values by secret positions, which cannot be counted"),
}


def family_comparisons(
    family: str, inputs: Sequence[int], output: Sequence[int], *, window: int = 1, length: int = 1
) -> int:
    """Nominal comparisons of one call for one sample.

    Args:
        family: A key of the table above.
        inputs: Shape of the input for one sample, with a leading 1 for the batch.
        output: Shape of the output for one sample, likewise.
        window: Elements in a pooling window, ``k²`` for a square one of side k.
        length: Elements of the axis that a softmax, an argmax or a top-k runs over.

    Returns:
        max-pool: window − 1 per output. Reductions: input − output elements (n − 1 per output of n inputs).
        argmax and softmax over n (its maximum): n − 1 per row. top-k: k passes, Σ n − i; a sort is a top-n. A sum of
        absolute values: 1 per input. Others: 1 per element.
    """
    elements, given = math.prod(output), math.prod(inputs)
    if family == "max_pool":
        return elements * (window - 1)
    if family in ("max", "adaptive_max_pool"):
        return max(given - elements, 0)
    if family in ("argmax", "softmax", "attention"):
        return given // max(length, 1) * (length - 1)
    if family == "absolute_sum":
        return given
    if family == "topk":
        rows = given // max(length, 1)
        return rows * sum(length - i for i in range(1, elements // max(rows, 1) + 1))
    return elements


def batch_axis(sizes: Sequence[int], batch: int) -> int | None:
    """Where a fixed batch is: on axis 0, as a factor of it, or else on the first axis that has its size."""
    if sizes and sizes[0] and sizes[0] % batch == 0:
        return 0
    return next((axis for axis, size in enumerate(sizes) if size == batch), None)


def per_sample(sizes: Sequence[object]) -> tuple[int, ...]:
    """Sizes for one sample: every symbol is 1, in ints, symbolic ints of torch, and ONNX dimension texts."""
    return tuple(_evaluate(size) for size in sizes)


def _evaluate(size: object) -> int:
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return evaluate_text(size) or 1
    expression = size.node.expr  # type: ignore[attr-defined]  # torch.SymInt, without importing torch
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def evaluate_text(text: str) -> int | None:
    """A dimension such as ``64*batch`` where every name is 1; None for a text that is no arithmetic."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return None
    return _value(tree.body)


def _value(node: ast.AST) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return int(_ARITHMETIC[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id="Max" | "Min" as name), args=arguments):
            return (max if name == "Max" else min)(_value(argument) for argument in arguments)
    return 1
