"""Numbers as text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autorep_fx.report import _text
from autorep_fx.report.data import ReportPolynomial

NB = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 100, f"0.0{NB}%"),
        (1, 491_520, f"<{NB}0.1{NB}%"),
        (26, 1_000, f"2.6{NB}%"),
        (491_519, 491_520, f">{NB}99.9{NB}%"),
        (5, 5, f"100.0{NB}%"),
        (0, 0, "–"),
    ],
)
def test_share_never_rounds_to_nothing_or_all(part: int, whole: int, text: str) -> None:
    assert _text.share(part, whole) == text


@pytest.mark.parametrize(
    ("value", "reference", "percent", "text"),
    [
        (0.94, 0.95, True, f"−1.00{NB}points"),
        (0.96, 0.95, True, f"+1.00{NB}points"),
        (0.95001, 0.95002, True, f"0.00{NB}points"),
        (21.5, 20.0, False, "+1.5"),
        (math.nan, 0.9, True, "not finite"),
    ],
)
def test_change_has_its_sign(value: float, reference: float, percent: bool, text: str) -> None:
    assert _text.change(value, reference, percent=percent) == text


@pytest.mark.parametrize(
    ("coefficients", "text"),
    [
        ([0.25], "0.25"),
        ([-0.5, 1.0], "−0.5 + 1·x"),
        ([0.0812, 0.5, -1e-5], "0.0812 + 0.5·x − 1e−05·x²"),
        ([0.0, 0.0, 0.0, 2.0], "0 + 0·x + 0·x² + 2·x³"),
        ([], "0"),
    ],
)
def test_formula(coefficients: list[float], text: str) -> None:
    edges = np.array([0.0, 1.0])
    polynomial = ReportPolynomial("relu", "relu", 0, np.array(coefficients), edges, np.array([1]), edges)
    assert _text.formula(polynomial) == text


def test_small_pieces() -> None:
    assert _text.count(491_520) == "491,520"
    assert _text.shape((64, 32, 32)) == "64×32×32"
    assert _text.shape(()) == "scalar"
    assert _text.span(None) == "–"
    assert _text.span((-3.1234, 4.0)) == "−3.12 … 4"
    assert _text.metric(0.9512, percent=True) == f"95.12{NB}%"
    assert _text.metric(23.456, percent=False) == "23.46"
    assert _text.metric(math.inf, percent=False) == _text.number(math.nan) == "not finite"
