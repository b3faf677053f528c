"""The exactness rule against brute force, and at a realistic size."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autorep_fx.gates.selection import select

units = st.lists(st.tuples(st.integers(-50, 50).map(lambda s: s / 7), st.sampled_from([1, 2, 3, 5, 7, 16])), max_size=9)


def attainable(costs: np.ndarray, allowance: int) -> set[int]:
    """Every total up to the allowance that some selection has, by trying all of them."""
    return {
        total
        for chosen in product((0, 1), repeat=len(costs))
        if (total := int(np.dot(chosen, costs) if len(costs) else 0)) <= allowance
    }


@settings(max_examples=300)
@given(units=units, allowance=st.integers(0, 90))
def test_the_largest_attainable_sum_is_spent(units: list[tuple[float, int]], allowance: int) -> None:
    """Never above; equal to the allowance whenever attainable; else the rest is below every unit not kept."""
    scores = np.array([score for score, _ in units], dtype=np.float64)
    costs = np.array([cost for _, cost in units], dtype=np.int64)
    kept = select(scores, costs, allowance)
    assert kept.dtype == bool
    assert kept.shape == costs.shape
    spent = int(costs[kept].sum())
    assert spent == max(attainable(costs, allowance))
    if not kept.all():
        assert allowance - spent < costs[~kept].min()


@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), cost=st.sampled_from([1, 2, 7]),
       allowance=st.integers(0, 300))  # fmt: skip
def test_with_equal_costs_the_best_scores_are_kept(scores: list[float], cost: int, allowance: int) -> None:
    """Exactly the first ⌊allowance/cost⌋ by falling score, ties by position."""
    values = np.array(scores)
    kept = select(values, np.full(len(scores), cost, dtype=np.int64), allowance)
    best = np.argsort(-values, kind="stable")[: allowance // cost]
    assert sorted(np.flatnonzero(kept)) == sorted(best)


@given(units=units, allowance=st.integers(0, 90))
def test_the_same_question_has_the_same_answer(units: list[tuple[float, int]], allowance: int) -> None:
    """Selection is a function of its arguments, and leaves them alone."""
    scores = np.array([score for score, _ in units], dtype=np.float64)
    costs = np.array([cost for _, cost in units], dtype=np.int64)
    before = scores.copy(), costs.copy()
    first = select(scores, costs, allowance)
    assert np.array_equal(first, select(scores, costs, allowance))
    assert np.array_equal(scores, before[0])
    assert np.array_equal(costs, before[1])


@given(units=units.filter(bool), allowance=st.integers(0, 90))
def test_a_unit_of_cost_one_makes_every_allowance_exact(units: list[tuple[float, int]], allowance: int) -> None:
    """With enough unit-cost elements nothing is left unspent."""
    units = units + [(0.0, 1)] * 16
    costs = np.array([cost for _, cost in units], dtype=np.int64)
    kept = select(np.array([score for score, _ in units]), costs, allowance)
    assert costs[kept].sum() == min(allowance, costs.sum())


@pytest.mark.parametrize(
    ("scores", "costs", "allowance", "kept"),
    [
        ([], [], 5, []),
        ([1.0], [3], 2, [False]),
        ([1.0], [3], 3, [True]),
        ([3.0, 2.0, 1.0], [2, 2, 1], 3, [True, False, True]),  # skips the second, which does not fit
        ([3.0, 2.0, 1.0], [3, 2, 2], 4, [False, True, True]),  # gives the best back to spend all
        ([5.0, 4.0, 1.0, 0.5], [1, 16, 16, 7], 24, [True, True, False, True]),
        ([0.0, 0.0, 0.0], [1, 1, 1], 2, [True, True, False]),  # ties by position
    ],
)
def test_small_cases(scores: list[float], costs: list[int], allowance: int, kept: list[bool]) -> None:
    """Cases small enough to see the answer."""
    assert select(np.array(scores), np.array(costs, dtype=np.int64), allowance).tolist() == kept


def test_little_is_given_back() -> None:
    """The rest is filled near the cut: all units but a few around it are the greedy choice."""
    rng = np.random.default_rng(0)
    costs = np.where(rng.random(4000) < 0.5, 5, 3)
    scores = rng.random(4000)
    kept = select(scores, costs, 6001)
    assert costs[kept].sum() == 6001
    order = np.argsort(-scores)
    greedy = np.zeros(4000, dtype=bool)
    greedy[order[np.cumsum(costs[order]) <= 6001]] = True
    assert (kept != greedy).sum() <= 16


@pytest.mark.parametrize("allowance", [12_900, 250_001, 500_000])
def test_a_realistic_model(allowance: int) -> None:
    """Half a million elements of cost 1, clips of cost 2, and whole channels, exact to the comparison."""
    rng = np.random.default_rng(1)
    costs = np.concatenate([np.ones(500_000), np.full(100_000, 2), np.full(512, 1024), np.full(256, 98)])
    costs = costs.astype(np.int64)
    scores = rng.normal(size=len(costs))
    kept = select(scores, costs, allowance)
    assert costs[kept].sum() == allowance


@pytest.mark.parametrize("allowance", [65_001, 99_999])
def test_a_model_of_channels_and_clips_only(allowance: int) -> None:
    """Even costs only: an odd allowance leaves exactly one comparison, far below any unit."""
    rng = np.random.default_rng(2)
    costs = rng.permutation(np.repeat([2, 64, 1024], [20_000, 400, 64])).astype(np.int64)
    kept = select(rng.normal(size=len(costs)), costs, allowance)
    assert allowance - costs[kept].sum() == 1
