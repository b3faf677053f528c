"""Least-squares polynomials against numerical integration, and their limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, ndtr

from autorep_fx.kinds import KINDS
from autorep_fx.polynomials import FitLimits, expected_square_error, fit_function, fit_piecewise
from autorep_fx.polynomials.gaussian import Array, hermite_coefficients, hermite_to_monomials
from autorep_fx.polynomials.site_fit import fit_site

LOOSE = FitLimits(sigma_floor=0.0, c2_bound=1e9)

# A composite Gauss–Legendre rule on μ ± 12σ, split at the kinks: within 1e-13 for what is tested here.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


def normal_rule(mean: float, std: float, kinks: tuple[float, ...] = ()) -> tuple[Array, Array]:
    """Nodes ``z`` and weights for expectations under N(0, 1), smooth pieces between the kinks of f(μ + σz)."""
    cuts = [(kink - mean) / std for kink in kinks]
    edges = np.unique([*np.linspace(-12, 12, 241), *(cut for cut in cuts if abs(cut) < 12)])
    left, right = edges[:-1, None], edges[1:, None]
    z = ((left + right) / 2 + (right - left) / 2 * _NODES).ravel()
    return z, ((right - left) / 2 * _WEIGHTS).ravel() * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def best_polynomial(
    function: Callable[[Array], Array], mean: float, std: float, degree: int, kinks: tuple[float, ...]
) -> Array:
    """Coefficients in ``z`` from the normal equations, an independent way to the same minimum."""
    z, weights = normal_rule(mean, std, kinks)
    basis = np.vander(z, degree + 1, increasing=True)
    return np.linalg.solve(
        (basis * weights[:, None]).T @ basis, (basis * weights[:, None]).T @ function(mean + std * z)
    )


def in_z(coefficients: Array, mean: float, std: float) -> Array:
    """``Σ c_k x^k`` as a polynomial in z = (x − mean)/std."""
    polynomial = np.polynomial.Polynomial(coefficients)(np.polynomial.Polynomial([mean, std]))
    result = np.zeros(len(coefficients))
    result[: len(polynomial.coef)] = polynomial.coef
    return result


def square_error(
    function: Callable[[Array], Array], coefficients: Array, mean: float, std: float, kinks: tuple[float, ...]
) -> float:
    z, weights = normal_rule(mean, std, kinks)
    x = mean + std * z
    return float(weights @ (function(x) - np.polynomial.Polynomial(coefficients)(x)) ** 2)


CLOSED = {
    "relu": ((), lambda x: np.maximum(x, 0.0), (0.0,)),
    "clip": ((-0.7, 2.5), lambda x: np.clip(x, -0.7, 2.5), (-0.7, 2.5)),
    "leaky_relu": ((0.2,), lambda x: np.where(x > 0, x, 0.2 * x), (0.0,)),
    "hardsigmoid": ((), lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0), (-3.0, 3.0)),
}
SMOOTH: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * expit(x),
    "gelu": lambda x: x * ndtr(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "sigmoid": expit,
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
}
KINKED: dict[str, tuple[Callable[[Array], Array], tuple[float, ...]]] = {
    "hardswish": (lambda x: x * np.clip(x + 3, 0, 6) / 6, (-3.0, 3.0)),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), (0.0,)),
}

positions = st.floats(-4, 4)  # of the mean, in standard deviations
widths = st.floats(-2, 1).map(lambda exponent: 10.0**exponent)


@pytest.mark.parametrize("kind", CLOSED)
@given(position=positions, std=widths, degree=st.integers(0, 2))
def test_the_closed_form_is_the_integral(kind: str, position: float, std: float, degree: int) -> None:
    """For every piecewise-linear kind, mean, deviation and degree: the coefficients solve the normal equations."""
    arguments, function, kinks = CLOSED[kind]
    mean = position * std
    form = KINDS[kind].piecewise
    assert form is not None
    found = fit_piecewise(form(arguments), np.array([mean]), np.array([std]), degree, LOOSE)
    assert found.shape == (degree + 1, 1)
    scale = std + abs(mean) + float(np.abs(function(np.array([mean])))[0])
    expected = best_polynomial(function, mean, std, degree, kinks)
    np.testing.assert_allclose(in_z(found[:, 0], mean, std), expected, atol=1e-9 * scale, rtol=0)


@pytest.mark.parametrize("kind", SMOOTH)
@given(position=positions, std=st.floats(0.01, 2.0), degree=st.integers(0, 2))
def test_quadrature_is_the_integral_for_smooth_kinds(kind: str, position: float, std: float, degree: int) -> None:
    """As gaussian.py says: within 1e-7·σ for σ ≤ 2."""
    mean = position * std
    found = hermite_coefficients(SMOOTH[kind], np.array([mean]), np.array([std]), degree)[:, 0]
    expected = hermite(SMOOTH[kind], mean, std, degree, ())
    np.testing.assert_allclose(found, expected, atol=1e-7 * std, rtol=0)


@pytest.mark.parametrize("kind", SMOOTH)
@given(position=positions, std=st.floats(2.0, 4.0))
def test_quadrature_of_wide_inputs(kind: str, position: float, std: float) -> None:
    """As gaussian.py says: within 1e-4·σ for σ ≤ 4."""
    mean = position * std
    found = hermite_coefficients(SMOOTH[kind], np.array([mean]), np.array([std]), 2)[:, 0]
    np.testing.assert_allclose(found, hermite(SMOOTH[kind], mean, std, 2, ()), atol=1e-4 * std, rtol=0)


@pytest.mark.parametrize("kind", KINKED)
@given(position=positions, std=st.floats(0.01, 8.0))
def test_quadrature_of_kinds_with_a_kink(kind: str, position: float, std: float) -> None:
    """As gaussian.py says: within 5e-3·σ for σ ≤ 8."""
    function, kinks = KINKED[kind]
    mean = position * std
    found = hermite_coefficients(function, np.array([mean]), np.array([std]), 2)[:, 0]
    np.testing.assert_allclose(found, hermite(function, mean, std, 2, kinks), atol=5e-3 * std, rtol=0)


def hermite(
    function: Callable[[Array], Array], mean: float, std: float, degree: int, kinks: tuple[float, ...]
) -> Array:
    """E[f·He_k]/k! by the dense rule."""
    z, weights = normal_rule(mean, std, kinks)
    basis = np.stack([np.ones_like(z), z, (z**2 - 1) / 2])[: degree + 1]
    return basis @ (weights * function(mean + std * z))


def test_slopes_per_channel_are_fitted_per_channel() -> None:
    """A PReLU with slopes a, b is a leaky ReLU of slope a in the first channel, of slope b in the second."""
    prelu, leaky = KINDS["prelu"].piecewise, KINDS["leaky_relu"].piecewise
    assert prelu is not None
    assert leaky is not None
    mean, std = np.array([0.4, -1.0]), np.array([0.5, 2.0])
    found = fit_piecewise(prelu((np.array([-0.2, 0.7]),)), mean, std, 2, LOOSE)
    for channel, slope in enumerate((-0.2, 0.7)):
        at = slice(channel, channel + 1)
        np.testing.assert_allclose(
            found[:, at], fit_piecewise(leaky((slope,)), mean[at], std[at], 2, LOOSE), atol=1e-12
        )


def test_relu_under_the_standard_normal() -> None:
    """The values that AutoReP's formula gives: 1/(2√2π), 1/2, 1/(2√2π)."""
    form = KINDS["relu"].piecewise
    assert form is not None
    found = fit_piecewise(form(()), np.array([0.0]), np.array([1.0]), 2, FitLimits())
    np.testing.assert_allclose(found[:, 0], [0.1994711402, 0.5, 0.1994711402], atol=1e-10)


def test_the_deviation_is_no_variance() -> None:
    """Under N(0, 4) the quadratic term is halved, not quartered: σ enters as the standard deviation."""
    form = KINDS["relu"].piecewise
    assert form is not None
    found = fit_piecewise(form(()), np.array([0.0]), np.array([2.0]), 2, FitLimits())
    np.testing.assert_allclose(found[:, 0], [2 * 0.1994711402, 0.5, 0.1994711402 / 2], atol=1e-10)


@pytest.mark.parametrize("kind", CLOSED)
@given(
    position=positions, std=widths, degree=st.integers(0, 2),
    direction=st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda d: max(map(abs, d)) > 0.1),
)  # fmt: skip
def test_no_other_polynomial_is_better(
    kind: str, position: float, std: float, degree: int, direction: list[float]
) -> None:
    """A step of 1 % away from the fit, in any direction, raises the expected square error."""
    arguments, function, kinks = CLOSED[kind]
    mean = position * std
    form = KINDS[kind].piecewise
    assert form is not None
    fit = fit_piecewise(form(arguments), np.array([mean]), np.array([std]), degree, LOOSE)[:, 0]
    step = 0.01 * std * np.array([direction[0] or 0.1, *direction[1:]])[: degree + 1]
    moved = hermite_to_monomials(step[:, None], np.array([mean]), np.array([std]))[:, 0]
    error = square_error(function, fit, mean, std, kinks)
    for sign in (1, -1):
        other = square_error(function, fit + sign * moved, mean, std, kinks)
        # The increase is the square of the step in an orthogonal basis, whatever its direction.
        assert other - error == pytest.approx(step**2 @ np.array([1, 1, 2])[: degree + 1], rel=1e-3, abs=1e-11)


def test_higher_degrees_are_no_worse() -> None:
    """The expected square error falls with the degree."""
    mean, std = np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.5, 3.0])
    form = KINDS["relu"].piecewise
    assert form is not None
    errors = [
        expected_square_error(lambda x: np.maximum(x, 0), fit_piecewise(form(()), mean, std, d, LOOSE), mean, std)
        for d in (0, 1, 2)
    ]
    assert (errors[0] > errors[1]).all()
    assert (errors[1] > errors[2]).all()


@pytest.mark.parametrize("kind", CLOSED)
@given(position=positions, std=st.floats(0.05, 5), degree=st.integers(0, 2))
def test_the_reported_error_is_the_integral(kind: str, position: float, std: float, degree: int) -> None:
    """As its docstring says: within 5e-3·σ², the kink being what the quadrature cannot resolve."""
    arguments, function, kinks = CLOSED[kind]
    mean = np.array([position * std])
    form = KINDS[kind].piecewise
    assert form is not None
    fit = fit_piecewise(form(arguments), mean, np.array([std]), degree, LOOSE)
    [found] = expected_square_error(function, fit, mean, np.array([std]))
    assert found == pytest.approx(square_error(function, fit[:, 0], mean[0], std, kinks), abs=5e-3 * std**2)


@given(
    hermite_terms=st.lists(st.floats(-5, 5), min_size=1, max_size=3), mean=st.floats(-3, 3), std=st.floats(0.1, 5),
    x=st.floats(-10, 10),
)  # fmt: skip
def test_the_change_of_basis_keeps_the_polynomial(
    hermite_terms: list[float], mean: float, std: float, x: float
) -> None:
    """Both forms have one value at every x."""
    z = (x - mean) / std
    monomials = hermite_to_monomials(np.array(hermite_terms)[:, None], np.array([mean]), np.array([std]))[:, 0]
    left = np.polynomial.hermite_e.hermeval(z, hermite_terms)
    right = np.polynomial.Polynomial(monomials)(x)
    assert right == pytest.approx(left, abs=1e-11 * (1 + abs(z) + abs(mean / std)) ** 2 * 50)


def test_degrees_above_two_are_refused() -> None:
    """The change of basis is written for degrees 0 to 2."""
    with pytest.raises(ValueError, match="degree 0 to 2, got 3"):
        hermite_to_monomials(np.zeros((4, 1)), np.zeros(1), np.ones(1))


def test_the_floor_is_relative_to_the_site() -> None:
    """A nearly constant channel gets 5 % of the site's root mean square; the others keep their own."""
    std = np.array([1.0, 1e-9, 2.0])
    floored = FitLimits(sigma_floor=0.05).floored(std)
    np.testing.assert_allclose(floored, [1.0, 0.05 * np.sqrt((1 + 4) / 3), 2.0], rtol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("kind", ["relu", "clip", "leaky_relu", "silu", "elu"])
@pytest.mark.parametrize("std", [[0.0, 0.0], [0.0, 1.0], [1e-200, 0.0], [1e-30, 1e-30]])
def test_constant_channels_have_finite_fits(kind: str, std: list[float], degree: int) -> None:
    """σ = 0 in some or all channels gives finite coefficients within the bound, for floor 0 as well."""
    function = {**SMOOTH, **{name: case[0] for name, case in KINKED.items()}}.get(kind)
    for limits in (FitLimits(), FitLimits(sigma_floor=0.0)):
        mean, deviations = np.array([0.0, 3.0]), np.array(std)
        form = KINDS[kind].piecewise
        if form is not None:
            found = fit_piecewise(form(()), mean, deviations, degree, limits)
        else:
            assert function is not None
            found = fit_function(function, mean, deviations, degree, limits)
        assert np.isfinite(found).all()
        assert found.shape == (degree + 1, 2)
        if degree == 2:
            assert (np.abs(found[2]) <= 10.0 * (1 + 1e-12)).all()


def test_the_bound_holds_and_the_rest_stays_optimal() -> None:
    """With |c2| clipped, no better polynomial with that c2 exists: value and slope are refitted."""
    form = KINDS["relu"].piecewise
    assert form is not None
    mean, std = np.array([0.05]), np.array([0.1])
    free = fit_piecewise(form(()), mean, std, 2, LOOSE)[:, 0]
    fit = fit_piecewise(form(()), mean, std, 2, FitLimits(c2_bound=0.5))[:, 0]
    assert free[2] > 1.0
    assert fit[2] == pytest.approx(0.5, rel=1e-12)
    best = best_polynomial(lambda x: np.maximum(x, 0) - 0.5 * x**2, 0.05, 0.1, 1, (0.0,))
    np.testing.assert_allclose(in_z(fit[:2], 0.05, 0.1), best, atol=1e-12)


def test_sites_use_their_arguments_and_their_kind() -> None:
    """A clip is fitted in closed form with its bounds; a smooth kind through its torch function."""
    import torch

    mean, std = np.array([0.5, -1.0]), np.array([1.0, 2.0])
    clip = fit_site("clip", (0.0, 6.0), torch.nn.functional.relu6, mean, std, 2, LOOSE)
    quadrature = fit_function(lambda x: np.clip(x, 0, 6), mean, std, 2, LOOSE)
    np.testing.assert_allclose(clip, quadrature, atol=5e-3)
    assert np.abs(clip - quadrature).max() > 1e-9  # the closed form, not the quadrature
    silu = fit_site("silu", (), torch.nn.functional.silu, mean, std, 2, LOOSE)
    np.testing.assert_allclose(silu, fit_function(SMOOTH["silu"], mean, std, 2, LOOSE), atol=1e-12)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.piecewise is not None])
@given(x=st.floats(-20, 20))
def test_the_piecewise_form_is_the_activation(kind: str, x: float) -> None:
    """``offset + slope·x + Σ weight·relu(x − position)`` is the activation at every point, defaults included."""
    make = KINDS[kind].piecewise
    assert make is not None
    defaults = {
        "relu": lambda v: np.maximum(v, 0.0),
        "clip": lambda v: np.clip(v, -1.0, 1.0),
        "leaky_relu": lambda v: np.where(v > 0, v, 0.01 * v),
        "prelu": lambda v: np.where(v > 0, v, 0.01 * v),
        "hardsigmoid": CLOSED["hardsigmoid"][1],
    }
    cases = [((), defaults[kind])]
    if kind in CLOSED:
        cases.append((CLOSED[kind][0], CLOSED[kind][1]))
    for arguments, function in cases:
        form = make(arguments)
        value = form.offset + form.slope * x + sum(w * max(x - position, 0.0) for w, position in form.knots)
        assert value == pytest.approx(float(function(np.array(x))), abs=1e-12)
