"""Which units to keep so that a budget is met exactly: the exactness rule.

Units have a score and an integer cost. The kept units never cost more than the allowance; they cost exactly the
allowance whenever some selection does; otherwise what is left over is smaller than the cheapest unit not kept.
Under those rules units of higher score are preferred.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["select"]

Scores = npt.NDArray[np.floating[Any]]
Costs = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def select(scores: Scores, costs: Costs, allowance: int) -> Mask:
    """Select the units to keep.

    Units are taken by falling score while they fit. Where that leaves a rest that an exact selection would not
    leave, the last units taken are given back, more and more of them, until the rest can be filled exactly.

    Args:
        scores: ``(n,)`` finite scores; ties are broken by position.
        costs: ``(n,)`` positive comparisons per unit.
        allowance: Comparisons to spend.

    Returns:
        ``(n,)`` mask of the kept units.
    """
    if len(costs) and costs.min() == costs.max():
        return _highest(np.asarray(scores), allowance // int(costs[0]))
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    kept = _greedy(order, costs, allowance)
    rest = allowance - int(costs[kept].sum())
    if rest == 0 or kept.all():
        return kept
    target = _largest_sum(costs, allowance)
    if allowance - rest == target:
        return kept
    taken = order[kept[order]]
    given_back = 1
    while True:
        core = kept.copy()
        core[taken[len(taken) - min(given_back, len(taken)) :]] = False
        missing = target - int(costs[core].sum())
        filled = _fill(order[~core[order]], costs, missing)
        if filled is not None:
            core[filled] = True
            return core
        given_back *= 4  # with all given back the target is reachable by its definition


def _highest(scores: Scores, count: int) -> Mask:
    """The ``count`` highest scores, ties by position: all there is to choose where every unit costs the same."""
    if count >= len(scores):
        return np.ones(len(scores), dtype=bool)
    if count == 0:
        return np.zeros(len(scores), dtype=bool)
    lowest = np.partition(scores, len(scores) - count)[len(scores) - count]
    kept: Mask = scores > lowest
    ties = np.flatnonzero(scores == lowest)
    kept[ties[: count - int(kept.sum())]] = True
    return kept


def _greedy(order: npt.NDArray[np.int64], costs: Costs, allowance: int) -> Mask:
    """Take units in order while they fit, skipping those that do not."""
    kept = np.zeros(len(costs), dtype=bool)
    left, remaining = allowance, order
    while len(remaining):
        remaining = remaining[costs[remaining] <= left]
        totals = np.cumsum(costs[remaining])
        fitting = int(np.searchsorted(totals, left, side="right"))
        if fitting == 0:
            break
        kept[remaining[:fitting]] = True
        left -= int(totals[fitting - 1])
        remaining = remaining[fitting:]
    return kept


def _classes(costs: Costs) -> tuple[list[tuple[int, int]], int]:
    """``(cost / divisor, number of units)`` per distinct cost, and the common divisor."""
    values, counts = np.unique(costs, return_counts=True)
    divisor = math.gcd(*map(int, values)) if len(values) else 1
    return [(int(v) // divisor, int(n)) for v, n in zip(values, counts, strict=True)], divisor


def _reachable(classes: list[tuple[int, int]], limit: int) -> list[int]:
    """Sums up to ``limit`` reachable with the first k classes, as bit sets, for every k (bounded subset sum)."""
    mask = (1 << (limit + 1)) - 1
    stages = [1]
    for cost, count in classes:
        bits, chunk = stages[-1], 1
        while count > 0:  # 1 + 2 + 4 + ... units at a time reach every number of units
            take = min(chunk, count)
            if take * cost > limit:
                # More than `limit // cost` units never fit; a smaller chunk still may.
                take = min(take, limit // cost)
                if take == 0:
                    break
                count = take
            bits = (bits | (bits << (take * cost))) & mask
            count -= take
            chunk *= 2
        stages.append(bits)
    return stages


def _largest_sum(costs: Costs, allowance: int) -> int:
    """The largest total cost of any selection that is at most ``allowance``."""
    classes, divisor = _classes(costs)
    return (_reachable(classes, allowance // divisor)[-1].bit_length() - 1) * divisor


def _fill(candidates: npt.NDArray[np.int64], costs: Costs, missing: int) -> npt.NDArray[np.int64] | None:
    """Candidates (best first) that cost exactly ``missing``; None if no selection does."""
    classes, divisor = _classes(costs[candidates])
    if missing % divisor:
        return None
    left = missing // divisor
    stages = _reachable(classes, left)
    if not stages[-1] >> left & 1:
        return None
    chosen = []
    for (cost, count), before in zip(reversed(classes), reversed(stages[:-1]), strict=True):
        # As many of the dearer units as possible, so that few units are needed; a class's best come first.
        number = next(
            n for n in range(min(count, left // cost), -1, -1) if before >> (left - n * cost) & 1
        )  # fmt: skip
        chosen.append(candidates[costs[candidates] == cost * divisor][:number])
        left -= number * cost
    filled: npt.NDArray[np.int64] = np.concatenate(chosen)
    return filled
