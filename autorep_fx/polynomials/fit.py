r"""Distribution-aware polynomial approximation (DaPa): the least-squares fit under the input's distribution.

For ReLU under :math:`N(\mu, \sigma^2)` with a kink at :math:`t`, :math:`u = (\mu - t)/\sigma` and
:math:`\varphi, \Phi` the standard normal density and distribution, the Hermite coefficients are closed:
:math:`h_0 = \sigma(\varphi(u) + u\Phi(u))`, :math:`h_1 = \sigma\Phi(u)`, :math:`h_2 = \sigma\varphi(u)/2`.
(AutoReP, arXiv 2308.10134, gives the same for t = 0; its released code passes a variance for σ.) Any piecewise-
linear activation is a sum of shifted ReLUs and so has a closed form too; a smooth one is fitted by quadrature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from autorep_fx.kinds import PiecewiseLinear
from autorep_fx.polynomials.gaussian import Array, hermite_coefficients, hermite_to_monomials

__all__ = ["FitLimits", "fit_function", "fit_piecewise"]


@dataclass(frozen=True)
class FitLimits:
    """Bounds that keep a fit usable outside the distribution it was made for.

    Attributes:
        sigma_floor: Smallest standard deviation of a channel, relative to the root mean square over the channels
            of its site. A nearly constant channel would otherwise get a huge curvature.
        c2_bound: Largest absolute quadratic coefficient, in 1/units of x.
    """

    sigma_floor: float = 0.05
    c2_bound: float = 10.0

    @property
    def relative_floor(self) -> float:
        """Floor of σ per channel, relative to the site's RMS σ."""
        return max(self.sigma_floor, 1e-6)

    def floored(self, std: Array) -> Array:
        """Standard deviations ``(C,)`` after the floor; a site that is constant everywhere gets 1."""
        scale = float(np.sqrt(np.mean(np.square(std))))
        if scale == 0.0:
            return np.ones_like(std)
        return np.maximum(std, self.relative_floor * scale)


def fit_piecewise(form: PiecewiseLinear, mean: Array, std: Array, degree: int, limits: FitLimits) -> Array:
    """Closed-form fit of a piecewise-linear activation.

    Args:
        form: The activation.
        mean: ``(C,)`` means of the input.
        std: ``(C,)`` standard deviations of the input.
        degree: 0, 1 or 2.
        limits: Floor and bound.

    Returns:
        Coefficients ``(degree + 1, C)``, lowest power first.
    """
    std = limits.floored(std)
    hermite = np.zeros((3, len(mean)))
    hermite[0] = form.offset + form.slope * mean
    hermite[1] = form.slope * std
    for weight, position in form.knots:
        u = (mean - position) / std
        density, probability = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi), ndtr(u)
        hermite[0] += weight * std * (density + u * probability)
        hermite[1] += weight * std * probability
        hermite[2] += weight * std * density / 2
    return _bounded(hermite[: degree + 1], mean, std, limits)


def fit_function(function: Callable[[Array], Array], mean: Array, std: Array, degree: int, limits: FitLimits) -> Array:
    """The same for any elementwise activation, by 128-point Gauss–Hermite quadrature."""
    std = limits.floored(std)
    return _bounded(hermite_coefficients(function, mean, std, degree), mean, std, limits)


def _bounded(hermite: Array, mean: Array, std: Array, limits: FitLimits) -> Array:
    # In the orthogonal basis the lower coefficients stay optimal when the quadratic one is clipped.
    if len(hermite) > 2:
        largest = limits.c2_bound * std**2
        hermite[2] = np.clip(hermite[2], -largest, largest)
    return hermite_to_monomials(hermite, mean, std)
