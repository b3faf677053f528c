"""Schedules over the progress of a phase, from 0 to 1, whatever the number of steps."""

from __future__ import annotations

import math

__all__ = ["kept_target", "learning_rate"]


def learning_rate(progress: float, start: float, end: float, warmup: float = 0.0) -> float:
    """A linear rise to ``start`` over the first ``warmup`` of the progress, then half a cosine to ``end``."""
    if progress < warmup:
        return start * (0.01 + 0.99 * progress / warmup)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def kept_target(progress: float, start: int, allowed: int, reach: float) -> int:
    """Comparisons that may be kept at ``progress``: cubic from ``start``, equal to ``allowed`` from ``reach`` on.

    The cubic is the sparsity schedule of Zhu and Gupta (arXiv 1710.01878): fast while units are plenty, slow near
    the end.
    """
    left = (1 - min(progress / reach, 1.0)) ** 3
    return allowed + math.floor((start - allowed) * left)
