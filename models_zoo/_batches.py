"""Mini-batches in an order that depends on (seed, epoch) alone, and augmentation of whole batches."""

from __future__ import annotations

__all__ = ["Augment", "Batches", "crop_flip", "random_shift"]

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from autorep_fx.models_zoo._images import Split

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Maps a batch (N, C, H, W) to its augmented form, drawing from the given CPU generator only."""


class Batches:
    """Re-iterable of (x, y) batches of a split.

    Each iteration that is begun takes the next epoch. The order and the augmentation of an epoch depend on
    (seed, epoch) alone, so a run that restores the state between two epochs sees the same batches as one
    that was never interrupted.

    Args:
        split: The samples, all in memory; batches are on its device.
        batch_size: Samples of a batch; the last batch of an epoch may have fewer.
        shuffle: Whether each epoch has its own random order.
        seed: Zero or more.
        drop_last: Leaves out a last batch that is not full.
        augment: Applied to each batch's x.

    Raises:
        ValueError: `batch_size` is below 1, `seed` below 0, or `drop_last` would leave no batch at all.
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
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        if drop_last and len(split) < batch_size:
            raise ValueError(f"drop_last leaves no batch of {batch_size} from {len(split)} samples; lower batch_size.")
        self.split = split
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.augment = augment
        self._epoch = 0

    def __len__(self) -> int:
        """Batches of one epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Begin the next epoch."""
        epoch = self._epoch
        self._epoch = epoch + 1
        return self._run(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` (zero or more) the one that the next iteration gives."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}.")
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch that the next iteration gives; save it between epochs."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.set_epoch(state["epoch"])

    def _run(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        count = len(self.split)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=self._generator(epoch, 0))
        # A stream of its own, so that the draws do not depend on whether the order was drawn too.
        generator = self._generator(epoch, 1)
        for batch in range(len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            x, y = self.split.x[indices], self.split.y[indices]
            yield (x if self.augment is None else self.augment(x, generator)), y

    def _generator(self, epoch: int, stream: int) -> torch.Generator:
        state = np.random.SeedSequence((self.seed, epoch, stream)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))


def random_shift(pixels: int) -> Augment:
    """Shift each sample by −pixels … +pixels along H and W, independently; zeros come in at the border."""
    if pixels < 0:
        raise ValueError(f"pixels must be 0 or more, got {pixels}.")

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        rows, columns = _window(x, pixels, generator)
        return _take(x, pixels, rows, columns)

    return augment


def crop_flip(padding: int = 4) -> Augment:
    """Crop each sample at random from its zero-padded form, and mirror every other one left to right.

    The crop is what `random_shift` does; zero is the mean of a normalised image.
    """
    if padding < 0:
        raise ValueError(f"padding must be 0 or more, got {padding}.")

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        rows, columns = _window(x, padding, generator)
        mirrored = torch.rand(len(x), 1, generator=generator) < 0.5
        return _take(x, padding, rows, torch.where(mirrored, columns.flip(1), columns))

    return augment


def _window(x: torch.Tensor, padding: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the rows (N, H) and columns (N, W) of a window of x's size in each padded sample."""
    top, left = torch.randint(0, 2 * padding + 1, (2, len(x), 1), generator=generator)
    return top + torch.arange(x.shape[2]), left + torch.arange(x.shape[3])


def _take(x: torch.Tensor, padding: int, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return padded x at each sample's own rows (N, H) and columns (N, W), as (N, C, H, W)."""
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    rows, columns = rows.to(x.device), columns.to(x.device)
    # Index tensors around a slice put the sliced axis last: (N, H, W, C).
    taken = padded[sample, :, rows[:, :, None], columns[:, None, :]]
    return taken.permute(0, 3, 1, 2).contiguous()
