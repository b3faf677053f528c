"""Measurements over the samples of all processes of a training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["is_parallel", "means_of_all", "range_of_all"]


def is_parallel() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def means_of_all(means: Sequence[Tensor], weight: float) -> list[Tensor]:
    """The means over all processes, each of which has its own mean over ``weight`` values."""
    if not is_parallel():
        return list(means)
    total = torch.stack([*means, torch.ones_like(means[0])]) * weight
    dist.all_reduce(total)
    *sums, count = total.unbind(0)
    return [value / count for value in sums]


def range_of_all(values: Tensor) -> Tensor:
    """Smallest and largest value over all processes, ``(2,)``."""
    low, high = torch.aminmax(values)
    if is_parallel():
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return torch.stack([low, high])
