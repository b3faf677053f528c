"""How single elements are written into a secret tensor at public places, and in how many turns."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["row_width", "turns_at_random"]

# Elements that the engine masks while it gathers one: 2 µs against 0.1, with three parties on two cores.
_GATHERED = 20
_WIDEST = 256


def row_width(size: int, turns: Callable[[int], int]) -> int:
    """The length of rows to cut an axis into, where every turn writes at most one element of each row.

    A turn masks all elements and gathers one per row.

    Args:
        size: Elements of the axis, of which the width is a divisor.
        turns: Width → turns, the most elements that one row gets.
    """

    def work(width: int) -> int:
        return turns(width) * (size + _GATHERED * size // width)

    return min((width for width in range(1, min(size, _WIDEST) + 1) if size % width == 0), key=work)


def turns_at_random(written: int, size: int, width: int) -> int:
    """The most elements that one row of ``width`` is likely to get of ``written`` that go anywhere (Poisson)."""
    rows, turns = size // width, 0
    mean = written / rows
    beyond = 1 - math.exp(-mean)
    term = math.exp(-mean)
    while rows * beyond > 0.5:
        turns += 1
        term *= mean / turns
        beyond -= term
    return min(max(turns, math.ceil(mean)), written, width)
