"""Schedules over the progress of a phase, from 0 to 1, whatever the number of steps."""

from __future__ import annotations

import math

__all__ = ["cosine", "kept_target"]


def cosine(progress: float, start: float, end: float) -> float:
    """Learning rate: half a cosine from ``start`` to ``end``."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def kept_target(progress: float, start: int, allowed: int, reach: float) -> int:
    """Comparisons that may be kept at ``progress``: cubic from ``start``, equal to ``allowed`` from ``reach`` on.

    The cubic is the sparsity schedule of Zhu and Gupta (arXiv 1710.01878): fast while units are plenty, slow near
    the end.
    """
    left = (1 - min(progress / reach, 1.0)) ** 3
    return allowed + math.floor((start - allowed) * left)
