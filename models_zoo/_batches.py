"""Mini-batches whose order and augmentation depend on (seed, epoch) alone, so that a resumed run repeats them."""

from __future__ import annotations

__all__ = ["Batches", "EpochBatches", "generator_of"]

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import torch

from autorep_fx.models_zoo._augment import Augment
from autorep_fx.models_zoo._images import Split


class EpochBatches(ABC):
    """Re-iterable of (x, y) batches.

    1. Each iteration that is begun takes the next epoch, or the one that `set_epoch` has chosen.
    2. The order and the augmentation of an epoch depend on (seed, epoch) alone, not on the device. Nothing is
       drawn from the global generators.
    3. `state_dict` is the position after the last batch that was given. A run that loads it goes on with the
       next batch, in the middle of an epoch too, and sees what the other run would have seen: for the batches
       before it only the draws are repeated.

    Args:
        count: Samples.
        batch_size: Samples of a batch; the last batch of an epoch may have fewer.
        shuffle: Whether each epoch has its own random order.
        seed: Zero or more.
        drop_last: Leaves out a last batch that is not full.
        augment: Applied to each batch's x.

    Raises:
        ValueError: `batch_size` is below 1, `seed` below 0, or `drop_last` would leave no batch at all.
    """

    def __init__(
        self, count: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool, augment: Augment | None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        if drop_last and count < batch_size:
            raise ValueError(f"drop_last leaves no batch of {batch_size} from {count} samples; lower batch_size.")
        self.count = count
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.augment = augment
        self._next = (0, 0)  # epoch and batch that the next iteration begins with
        self._position = (0, 0)

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Give batches on this device from now on; returns itself."""

    @abstractmethod
    def _sample_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one sample."""

    @abstractmethod
    def _load(self, epoch: int, batches: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the normalised samples (N, C, H, W) and labels (N,) at the indices of each batch."""

    def __len__(self) -> int:
        """Batches of one epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Begin the next epoch."""
        epoch, first = self._position = self._next
        self._next = (epoch + 1, 0)
        return self._run(epoch, first)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` (zero or more) the one that the next iteration gives, from its first batch."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}.")
        self._next = self._position = (epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and in it the batch, that comes after the last one that was given."""
        return {"epoch": self._position[0], "batch": self._position[1]}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken: the next iteration gives the rest of that epoch."""
        batch = state.get("batch", 0)
        if not 0 <= batch < max(1, len(self)):
            raise ValueError(f"batch must be one of the {len(self)} of an epoch, got {batch}.")
        self.set_epoch(state["epoch"])
        self._next = self._position = (state["epoch"], batch)

    def _run(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=generator_of(self.seed, epoch, 0))
        batches = order.split(self.batch_size)[: len(self)] if self.count else ()
        # A stream of its own, so that the draws do not depend on whether the order was drawn too.
        generator = generator_of(self.seed, epoch, 1)
        if self.augment is not None:
            for batch in batches[:first]:
                self.augment(torch.empty(len(batch), *self._sample_shape(), device="meta"), generator)
        for number, (x, y) in enumerate(self._load(epoch, batches[first:]), first):
            if self.augment is not None:
                x = self.augment(x, generator)
            self._position = (epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0)
            yield x, y


class Batches(EpochBatches):
    """Batches of a split that is in memory, on the device where it is.

    Args:
        split: The samples.
        batch_size: Samples of a batch; the last batch of an epoch may have fewer.
        shuffle: Whether each epoch has its own random order.
        seed: Zero or more.
        drop_last: Leaves out a last batch that is not full.
        augment: Applied to each batch's x.

    Raises:
        ValueError: As for `EpochBatches`, whose rules hold.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(
            len(split), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, augment=augment
        )  # fmt: skip
        self.split = split

    def to(self, device: torch.device | str) -> Self:
        """Move the whole split there; returns itself."""
        self.split = self.split.to(device)
        return self

    def _sample_shape(self) -> tuple[int, ...]:
        return tuple(self.split.images.shape[1:])

    def _load(self, epoch: int, batches: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return map(self.split.take, batches)


def generator_of(*key: int) -> torch.Generator:
    """A CPU generator for a key of numbers, each zero or more; those of different keys are independent."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
