"""Training data and random numbers that a run can go on in the middle of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

__all__ = ["Resumable", "generator_states", "set_generator_states"]


@runtime_checkable
class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Resumable:
    """Goes through an epoch from any batch on, as far as the data can.

    Data with ``state_dict()`` and ``load_state_dict()`` say where they are; a list or tuple has the same order every
    time, so its first batches are skipped. Anything else can only begin an epoch.

    Args:
        data: Re-iterable batches.
        total: Batches of an epoch.
    """

    def __init__(self, data: Iterable[Any], total: int) -> None:
        self.data, self.total = data, total

    @property
    def can_resume(self) -> bool:
        """Whether an epoch can be taken up in its middle."""
        return isinstance(self.data, (_Stateful, list, tuple))

    def state(self) -> Any:
        """Where the data are now; None for those that have no state."""
        return self.data.state_dict() if isinstance(self.data, _Stateful) else None

    def batches(self, done: int = 0, state: Any = None) -> Iterator[Any]:
        """The batches of the epoch after the first ``done``.

        Args:
            done: Batches of this epoch that were used already.
            state: What :meth:`state` gave then.
        """
        left = self.total - done
        if not done:
            return itertools.islice(self.data, left)
        if isinstance(self.data, _Stateful):
            self.data.load_state_dict(state)
            return itertools.islice(self.data, left)
        return itertools.islice(self.data, done, self.total)

    def grouped(self, batches: Iterator[Any], done: int, size: int) -> Iterator[tuple[int, list[Any]]]:
        """The next ``size`` batches, fewer at the end of the epoch, and how many of the epoch are used with them."""
        while group := list(itertools.islice(batches, size)):
            done += len(group)
            yield done, group


def generator_states() -> dict[str, Any]:
    """States of torch's generators on the CPU and on all GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Set them; those of GPUs only where there are as many as then."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
