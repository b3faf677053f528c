"""Batches of images that stay in files: decoded by worker processes, normalised and augmented on the device."""

from __future__ import annotations

__all__ = ["IMAGENET_STATISTICS", "FileBatches", "Files"]

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from autorep_fx.models_zoo._augment import Augment, crop_boxes
from autorep_fx.models_zoo._batches import EpochBatches, generator_of
from autorep_fx.models_zoo._decode import Box, decode, square
from autorep_fx.models_zoo._images import normalise

#: Mean and deviation of ImageNet per channel, of pixels from 0 to 255: (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)
#: of 0 to 1, which the models of torchvision and timm are trained with (torchvision's docs, "Models and weights").
IMAGENET_STATISTICS = (torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255)

# What networks are commonly tested on: a square of 224 from the middle of an image whose shorter side is 256.
_TEST_SHARE = 224 / 256


@dataclass(frozen=True)
class Files:
    """Labelled images in files.

    Attributes:
        root: Folder that the names are relative to.
        names: Encoded path of each file (N,).
        y: Class indices, int64 (N,).
        image_size: Height and width that each image is brought to; None where all are of one size and stay so.
        statistics: Mean and deviation per channel, both (C,), that batches are normalised with.
    """

    root: Path
    names: npt.NDArray[np.bytes_]
    y: torch.Tensor
    image_size: int | None
    statistics: tuple[torch.Tensor, torch.Tensor] = IMAGENET_STATISTICS

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.root / os.fsdecode(self.names[index])


class FileBatches(EpochBatches):
    """Batches of images in files.

    Each image is brought to (3, image_size, image_size) as it is decoded: a random part of it, of 8 % to 100 % of its
    area, with `random_crop`; otherwise the square in the middle, 7/8 of the shorter side. The part depends on
    (seed, epoch, sample) alone, so the number of workers changes nothing.

    Args:
        files: The samples.
        batch_size: Samples of a batch; the last batch of an epoch may have fewer.
        random_crop: Whether a random part of each image is taken.
        workers: Processes that decode; 0 decodes in this one.
        shuffle: Whether each epoch has its own random order.
        seed: Zero or more.
        drop_last: Leaves out a last batch that is not full.
        augment: Applied to each batch's x, on its device.

    Raises:
        ValueError: `workers` is below 0, or as for `EpochBatches`, whose rules hold.
    """

    def __init__(
        self,
        files: Files,
        batch_size: int,
        *,
        random_crop: bool = False,
        workers: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(
            len(files), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, augment=augment
        )  # fmt: skip
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}.")
        self.files = files
        self.random_crop = random_crop
        self.workers = workers
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Give batches on this device from now on; returns itself."""
        self.device = torch.device(device)
        return self

    def _sample_shape(self) -> tuple[int, ...]:
        size = self.files.image_size
        return (3, size, size) if size is not None else tuple(_Decoder(self.files, None)[0][0].shape)

    def _load(self, epoch: int, batches: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = DataLoader(
            _Decoder(self.files, (self.seed, epoch) if self.random_crop else None),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            multiprocessing_context=_start_method() if self.workers else None,
            pin_memory=self.device.type == "cuda",
            # Without one, the loader would draw from the global generator.
            generator=generator_of(self.seed, epoch, 2),
        )
        for images, labels in loader:
            images, labels = (value.to(self.device, non_blocking=True) for value in (images, labels))
            yield normalise(images, *self.files.statistics), labels


def _start_method() -> Any:
    """How worker processes start; None for the platform's way.

    JAX, which a secure run brings into the process, has threads, and a process that is forked beside them may wait for
    a lock for ever: workers then come from a clean process that has imported this module.
    """
    if "jax" not in sys.modules or "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Decoder(Dataset[tuple[torch.Tensor, int]]):
    """Decoded samples by index; `key` decides, with the index, the random part of each."""

    def __init__(self, files: Files, key: tuple[int, int] | None) -> None:
        self.files, self.key = files, key

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.files.path(index)
        box = partial(square, share=_TEST_SHARE) if self.key is None else partial(self._random_box, index)
        pixels = decode(path, str(path), size=self.files.image_size, box=box)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), int(self.files.y[index])

    def _random_box(self, index: int, width: int, height: int) -> Box:
        assert self.key is not None
        generator = generator_of(*self.key, 3, index)
        left, top, across, down = crop_boxes(1, height, width, generator)[0].tolist()
        return left, top, min(left + across, width), min(top + down, height)
