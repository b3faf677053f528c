"""Least-squares polynomials of activations under the distribution of their input."""

from __future__ import annotations

from autorep_fx.polynomials.fit import FitLimits, fit_function, fit_piecewise
from autorep_fx.polynomials.gaussian import expected_square_error

__all__ = ["FitLimits", "expected_square_error", "fit_function", "fit_piecewise"]
