"""Schedules over the progress of a phase."""

from __future__ import annotations

import math

import pytest

from autorep_fx.training.schedule import kept_target, learning_rate


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    """From a hundredth to the full rate at the end of the warm-up, half way between at half of the rest."""
    rates = [learning_rate(i / 1000, 0.1, 0.001, warmup=0.2) for i in range(1001)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[100] == pytest.approx(0.1 * (0.01 + 0.99 * 0.5))
    assert rates[200] == pytest.approx(0.1)
    assert rates[600] == pytest.approx((0.1 + 0.001) / 2)
    assert rates[1000] == pytest.approx(0.001)
    assert rates[:201] == sorted(rates[:201])
    assert rates[200:] == sorted(rates[200:], reverse=True)


def test_without_a_warm_up_it_is_the_cosine() -> None:
    """End to end."""
    for progress in (0.0, 0.3, 1.0):
        expected = 0.5 * (1 + math.cos(math.pi * progress))
        assert learning_rate(progress, 1.0, 0.0) == pytest.approx(expected)


def test_the_kept_target_is_cubic_and_reaches_the_budget() -> None:
    """(1 − t)³ of the way, rounded down; the budget itself from ``reach`` on."""
    assert [kept_target(p, 1000, 100, 0.5) for p in (0.0, 0.25, 0.5, 0.9, 1.0)] == [1000, 212, 100, 100, 100]
