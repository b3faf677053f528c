"""The one table of activation kinds: how each is spelled, what it costs nominally, how it is fitted.

Adding a kind is one entry in :data:`KINDS`. The table is plain data, read by capture (ATen spellings), by the
counters (ONNX spellings) and by the fits (piecewise-linear form); it imports nothing heavy.

Nominal comparisons follow the papers' convention: AutoReP and SNL count one per ReLU element, and AutoReP counts
one per SiLU element of EfficientNet-B2; an activation that clips on two sides is counted as two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["KINDS", "KIND_OF_TARGET", "ActivationKind", "PiecewiseLinear"]

_ONE_SIDED = "one per element (AutoReP, arXiv 2308.10134; SNL, arXiv 2202.02340)"
_TWO_SIDED = "two per element: it clips on two sides"
_SMOOTH = "one per element, as AutoReP counts the SiLU of EfficientNet-B2"


@dataclass(frozen=True)
class PiecewiseLinear:
    """``offset + slope·x + Σ weight·relu(x − position)``: what a closed-form Gaussian fit needs.

    Attributes:
        offset: Constant part.
        slope: Linear part.
        knots: ``(weight, position)`` of every kink.
    """

    offset: float
    slope: float
    knots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ActivationKind:
    """One kind of elementwise activation.

    Attributes:
        name: The name in sites, plans and messages.
        target: The ATen overload of its canonical form, such as ``aten.relu.default``.
        comparisons: Nominal comparisons per element.
        source: Where that number comes from.
        onnx: ONNX operators that are this activation on their own.
        piecewise: Its piecewise-linear form for the extra arguments of a call; None for a smooth activation.
    """

    name: str
    target: str
    comparisons: int
    source: str
    onnx: tuple[str, ...]
    piecewise: Callable[[Sequence[float]], PiecewiseLinear] | None = None


def _relu(args: Sequence[float]) -> PiecewiseLinear:
    return PiecewiseLinear(0.0, 0.0, ((1.0, 0.0),))


def _clip(args: Sequence[float]) -> PiecewiseLinear:
    low, high = (*args, -1.0, 1.0)[:2] if len(args) >= 2 else (-1.0, 1.0)
    return PiecewiseLinear(low, 0.0, ((1.0, low), (-1.0, high)))


def _leaky(args: Sequence[float]) -> PiecewiseLinear:
    slope = args[0] if args else 0.01
    return PiecewiseLinear(0.0, slope, ((1.0 - slope, 0.0),))


def _hardsigmoid(args: Sequence[float]) -> PiecewiseLinear:
    return PiecewiseLinear(0.0, 0.0, ((1 / 6, -3.0), (-1 / 6, 3.0)))


KINDS: dict[str, ActivationKind] = {
    kind.name: kind
    for kind in (
        ActivationKind("relu", "aten.relu.default", 1, _ONE_SIDED, ("Relu",), _relu),
        ActivationKind("clip", "aten.hardtanh.default", 2, _TWO_SIDED, ("Clip",), _clip),
        ActivationKind("leaky_relu", "aten.leaky_relu.default", 1, _ONE_SIDED, ("LeakyRelu",), _leaky),
        ActivationKind("elu", "aten.elu.default", 1, _ONE_SIDED, ("Elu",)),
        ActivationKind("silu", "aten.silu.default", 1, _SMOOTH, ("Sigmoid", "Swish")),
        ActivationKind("gelu", "aten.gelu.default", 1, _SMOOTH, ("Gelu",)),
        ActivationKind("mish", "aten.mish.default", 1, _SMOOTH, ("Mish",)),
        ActivationKind("hardswish", "aten.hardswish.default", 2, _TWO_SIDED, ("HardSwish",)),
        ActivationKind("hardsigmoid", "aten.hardsigmoid.default", 2, _TWO_SIDED, ("HardSigmoid",), _hardsigmoid),
        ActivationKind("sigmoid", "aten.sigmoid.default", 1, _SMOOTH, ("Sigmoid",)),
        ActivationKind("tanh", "aten.tanh.default", 1, _SMOOTH, ("Tanh",)),
        ActivationKind("softplus", "aten.softplus.default", 1, _SMOOTH, ("Softplus",)),
    )
}

KIND_OF_TARGET: dict[str, ActivationKind] = {kind.target: kind for kind in KINDS.values()}
