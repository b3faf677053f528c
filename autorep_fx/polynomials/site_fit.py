"""Fitting the polynomial of a site: closed form where its activation has one, quadrature otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from autorep_fx.kinds import KINDS
from autorep_fx.polynomials.fit import FitLimits, fit_function, fit_piecewise
from autorep_fx.polynomials.gaussian import Array

__all__ = ["as_numpy", "fit_site"]


def as_numpy(function: Callable[[Tensor], Tensor]) -> Callable[[Array], Array]:
    """The activation on float64 arrays."""

    def evaluate(x: Array) -> Array:
        with torch.no_grad():
            return function(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    return evaluate


def fit_site(
    kind: str, arguments: Sequence[float], function: Callable[[Tensor], Tensor], mean: Array, std: Array,
    degree: int, limits: FitLimits,
) -> Array:  # fmt: skip
    """Coefficients ``(degree + 1, C)`` of the best polynomial per channel, lowest power first.

    Args:
        kind: Name of the activation kind.
        arguments: Scalar arguments of the call, such as the bounds of a clip.
        function: The activation with those arguments.
        mean: ``(C,)``.
        std: ``(C,)``.
        degree: 0 to 2.
        limits: Floor and bound.
    """
    piecewise = KINDS[kind].piecewise
    if piecewise is not None:
        return fit_piecewise(piecewise(arguments), mean, std, degree, limits)
    return fit_function(as_numpy(function), mean, std, degree, limits)
