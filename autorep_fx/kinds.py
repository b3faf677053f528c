"""The one table of activation kinds: how each is spelled, what it costs nominally, how it is fitted and tried.

Adding a kind is one entry in :data:`KINDS`. The table is plain data, read by canonicalisation (ATen spellings), by the
counters (ATen and ONNX spellings), by the fits (piecewise-linear form) and by the tests (examples); it imports nothing
heavy. Whatever has no piecewise-linear form is fitted by quadrature through its operation.

Nominal comparisons follow the papers' convention: AutoReP and SNL count one per ReLU element, and AutoReP counts
one per SiLU element of EfficientNet-B2; an activation that clips on two sides is counted as two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "ActivationKind", "PiecewiseLinear", "Spelling"]

_ONE_SIDED = "one per element (AutoReP, arXiv 2308.10134; SNL, arXiv 2202.02340)"
_TWO_SIDED = "two per element: it clips on two sides"
_SMOOTH = "one per element, as AutoReP counts the SiLU of EfficientNet-B2"

#: From a call's arguments after its input, by their names in the schema and with defaults filled in, to those of the
#: canonical operation; None where this call is not of the kind.
Spelling = Callable[[Mapping[str, Any]], tuple[Any, ...] | None]


@dataclass(frozen=True)
class PiecewiseLinear:
    """``offset + slope·x + Σ weight·relu(x − position)``: what a closed-form Gaussian fit needs.

    Each number may be an array with one value per channel.

    Attributes:
        offset: Constant part.
        slope: Linear part.
        knots: ``(weight, position)`` of every kink.
    """

    offset: Any
    slope: Any
    knots: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class ActivationKind:
    """One kind of elementwise activation.

    Attributes:
        name: The name in sites, plans and messages.
        target: The ATen overload of its canonical form, such as ``aten.relu.default``.
        comparisons: Nominal comparisons per element.
        source: Where that number comes from.
        onnx: ONNX operators of which each one is this activation, or the comparing part of it.
        piecewise: Its piecewise-linear form for the extra arguments of a call; None to fit by quadrature.
        spellings: Other ATen overloads that are this activation, and how their arguments become the canonical ones.
            The canonical overload is among them where its arguments need to be looked at or written out.
        examples: Extra arguments of canonical calls: tests try them, and expressions of several operations are
            recognised as these calls.
        parameters: Tensor arguments after the input; a site is gateable where they are parameters of the model.
    """

    name: str
    target: str
    comparisons: int
    source: str
    onnx: tuple[str, ...]
    piecewise: Callable[[Sequence[Any]], PiecewiseLinear] | None = None
    spellings: Mapping[str, Spelling] = field(default_factory=dict)
    examples: tuple[tuple[Any, ...], ...] = ((),)
    parameters: int = 0


def _relu(args: Sequence[Any]) -> PiecewiseLinear:
    return PiecewiseLinear(0.0, 0.0, ((1.0, 0.0),))


def _clip(args: Sequence[Any]) -> PiecewiseLinear:
    low, high = args if len(args) == 2 else (-1.0, 1.0)
    return PiecewiseLinear(low, 0.0, ((1.0, low), (-1.0, high)))


def _leaky(args: Sequence[Any]) -> PiecewiseLinear:
    slope = args[0] if len(args) else 0.01
    return PiecewiseLinear(0.0, slope, ((1.0 - slope, 0.0),))


def _hardsigmoid(args: Sequence[Any]) -> PiecewiseLinear:
    return PiecewiseLinear(0.0, 0.0, ((1 / 6, -3.0), (-1 / 6, 3.0)))


def _plain(call: Mapping[str, Any]) -> tuple[Any, ...]:
    return ()


def _bounds(call: Mapping[str, Any], low: str = "min", high: str = "max") -> tuple[Any, Any]:
    """The bounds of a clamp; None for one that is absent or infinite."""
    found = [call.get(low), call.get(high)]
    return tuple(None if bound in (-math.inf, math.inf) else bound for bound in found)  # type: ignore[return-value]


def _from_zero(call: Mapping[str, Any]) -> tuple[Any, ...] | None:
    return () if _bounds(call) == (0, None) else None


def _two_bounds(call: Mapping[str, Any], low: str = "min", high: str = "max") -> tuple[Any, ...] | None:
    bounds = _bounds(call, low, high)
    return (float(bounds[0]), float(bounds[1])) if all(isinstance(b, (int, float)) for b in bounds) else None


def _hardtanh(call: Mapping[str, Any]) -> tuple[Any, ...] | None:
    return _two_bounds(call, "min_val", "max_val")


def _threshold(call: Mapping[str, Any]) -> tuple[Any, ...] | None:
    return () if (call["threshold"], call["value"]) == (0, 0) else None


def _mean_slope(call: Mapping[str, Any]) -> tuple[Any, ...] | None:
    # Outside training a randomised leaky ReLU has the slope in the middle of its interval.
    return None if call["training"] else ((call["lower"] + call["upper"]) / 2,)


_RELU: dict[str, Spelling] = {
    "aten.clamp.default": _from_zero, "aten.clip.default": _from_zero, "aten.clamp_min.default": _from_zero,
    "aten.threshold.default": _threshold,
}  # fmt: skip
_CLIP: dict[str, Spelling] = {
    "aten.hardtanh.default": _hardtanh, "aten.clamp.default": _two_bounds, "aten.clip.default": _two_bounds,
    "aten.relu6.default": lambda call: (0.0, 6.0),
}  # fmt: skip

KINDS: dict[str, ActivationKind] = {
    kind.name: kind
    for kind in (
        ActivationKind("relu", "aten.relu.default", 1, _ONE_SIDED, ("Relu",), _relu, _RELU),
        ActivationKind(
            "clip", "aten.hardtanh.default", 2, _TWO_SIDED, ("Clip",), _clip, _CLIP, ((0.0, 6.0), (-1.0, 2.0)),
        ),
        ActivationKind(
            "leaky_relu", "aten.leaky_relu.default", 1, _ONE_SIDED, ("LeakyRelu",), _leaky,
            {"aten.rrelu.default": _mean_slope}, ((0.01,), (0.1,), (0.2,)),
        ),
        ActivationKind("prelu", "aten.prelu.default", 1, _ONE_SIDED, ("PRelu",), _leaky, parameters=1),
        ActivationKind("elu", "aten.elu.default", 1, _ONE_SIDED, ("Elu",), examples=((), (0.5,))),
        ActivationKind("selu", "aten.selu.default", 1, _ONE_SIDED, ("Selu",)),
        ActivationKind("celu", "aten.celu.default", 1, _ONE_SIDED, ("Celu",), examples=((2.0,),)),
        ActivationKind("silu", "aten.silu.default", 1, _SMOOTH, ("Sigmoid", "Swish")),
        ActivationKind("gelu", "aten.gelu.default", 1, _SMOOTH, ("Gelu",), examples=((), ("tanh",))),
        ActivationKind("mish", "aten.mish.default", 1, _SMOOTH, ("Mish",)),
        ActivationKind("hardswish", "aten.hardswish.default", 2, _TWO_SIDED, ("HardSwish",)),
        ActivationKind("hardsigmoid", "aten.hardsigmoid.default", 2, _TWO_SIDED, ("HardSigmoid",), _hardsigmoid),
        ActivationKind(
            "sigmoid", "aten.sigmoid.default", 1, _SMOOTH, ("Sigmoid",),
            spellings={"aten.special_expit.default": _plain},
        ),
        ActivationKind("tanh", "aten.tanh.default", 1, _SMOOTH, ("Tanh",)),
        ActivationKind("softplus", "aten.softplus.default", 1, _SMOOTH, ("Softplus",), examples=((), (2.0, 5.0))),
    )
}  # fmt: skip
