"""An order of channels in which the kinds of several sites fall into few runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["count_runs", "fewest_runs"]


def count_runs(rows: Tensor) -> int:
    """Runs of equal values in all rows ``(sites, channels)``; −1 stands for channels that a site does not have."""
    changes = (rows[:, 1:] != rows[:, :-1]) & (rows[:, 1:] >= 0) & (rows[:, :-1] >= 0)
    return int(changes.sum()) + len(rows)


def fewest_runs(rows: Tensor, cells: Sequence[tuple[int, int]]) -> Tensor | None:
    """An order of the channels, each within its cell, with few runs; None where the present one is as good.

    Nested sets become one run each: channels are sorted by how many sites keep them. For others the better of that
    order and of a walk from each pattern to the nearest is taken: the fewest runs are a shortest path through the
    patterns, which is not worth solving exactly.

    Args:
        rows: ``(sites, channels)``: 0 for kept, other numbers for other kinds, −1 for channels that a site does not
            have.
        cells: Stretches that channels must not leave.
    """
    candidates = []
    for sort in (_by_count, _nearest):
        order = torch.arange(rows.shape[1])
        before: Tensor | None = None
        for start, stop in cells:
            part = sort(rows[:, start:stop], before)
            order[start:stop] = start + part
            before = rows[:, start + int(part[-1])]
        candidates.append(order)
    best = min(candidates, key=lambda order: count_runs(rows[:, order]))
    return best if count_runs(rows[:, best]) < count_runs(rows) else None


def _by_count(rows: Tensor, before: Tensor | None) -> Tensor:
    """Kept by most sites first; equal patterns together."""
    keys = [(-int((column == 0).sum()), tuple(column.tolist())) for column in rows.T]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))


def _nearest(rows: Tensor, before: Tensor | None) -> Tensor:
    """From pattern to nearest pattern, starting next to the pattern ``before`` or at the one kept most."""
    patterns, member = torch.unique(rows, dim=1, return_inverse=True)
    at = before if before is not None else patterns[:, int((patterns == 0).sum(0).argmax())]
    left = torch.ones(patterns.shape[1], dtype=torch.bool)
    order: list[int] = []
    while bool(left.any()):
        distances = (patterns != at[:, None]).sum(0).masked_fill(~left, len(rows) + 1)
        nearest = int(distances.argmin())
        left[nearest] = False
        at = patterns[:, nearest]
        order += (member == nearest).nonzero().flatten().tolist()
    return torch.tensor(order)
