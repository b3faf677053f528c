"""Labelled images, and the two things every reader does: split by class, normalise."""

from __future__ import annotations

__all__ = ["ImageData", "Split", "channel_statistics", "normalise", "stratified_parts"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch


@dataclass(frozen=True)
class Split:
    """Samples in memory, and their labels.

    Attributes:
        images: Float32 (N, C, H, W) as a model takes them; or uint8, a quarter of the memory, which `statistics`
            normalise when a batch is taken.
        y: Class indices, int64 (N,).
        statistics: Mean and deviation per channel, both (C,), of images in uint8.
    """

    images: torch.Tensor
    y: torch.Tensor
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.y):
            raise ValueError(f"x and y must be equally long, got {len(self.images)} images, {len(self.y)} labels.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def x(self) -> torch.Tensor:
        """All images as a model takes them, float32 (N, C, H, W); a new copy of those in uint8."""
        return self.images if self.statistics is None else normalise(self.images, *self.statistics)

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised samples and the labels at `indices`, which may be on another device."""
        indices = indices.to(self.y.device)
        part = Split(self.images[indices], self.y[indices], self.statistics)
        return part.x, part.y

    def to(self, device: torch.device | str) -> Split:
        """Return the same samples on another device."""
        return Split(self.images.to(device), self.y.to(device), self.statistics)


PartT = TypeVar("PartT")


@dataclass(frozen=True)
class ImageData(Generic[PartT]):
    """A data set in three disjoint parts, each in memory (`Split`) or in files (`Files`).

    Attributes:
        train: What weights are fitted to.
        validation: What choices are made by.
        test: What is reported.
        classes: Name of each class index.
    """

    train: PartT
    validation: PartT
    test: PartT
    classes: tuple[str, ...]


def stratified_parts(labels: torch.Tensor, sizes: Sequence[int], seed: int) -> list[torch.Tensor]:
    """Cut 0 … N−1 into disjoint, sorted index sets of the given sizes, each with every class in proportion.

    Each class's shuffled samples are spread evenly over [0, 1); a part is an interval of the samples sorted
    by that position. Which sample goes where depends on the labels, the sizes and the seed alone.

    Args:
        labels: Class indices (N,).
        sizes: Samples of each part; what they leave over goes to one more, last part.
        seed: Zero or more.

    Raises:
        ValueError: The sizes add up to more than N.
    """
    classes = labels.numpy()
    if sum(sizes) > len(classes):
        raise ValueError(f"Parts of {list(sizes)} samples do not fit in {len(classes)} samples.")
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    position = np.empty(len(classes))
    for label in np.unique(classes):
        members = shuffled[classes[shuffled] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = shuffled[np.argsort(position[shuffled], kind="stable")]
    return [torch.from_numpy(np.sort(part)) for part in np.split(order, np.cumsum(sizes))]


def channel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, both (C,), of uint8 images (N, C, H, W), over N, H and W.

    They are exact, from a histogram, so no floating-point copy of the images is made. A constant channel
    gets a deviation of 1.
    """
    levels = torch.arange(256, dtype=torch.float64)
    channels = images.unbind(1)
    counts = torch.stack([torch.bincount(c.reshape(-1), minlength=256) for c in channels]).double()
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    deviation = (shares @ levels.square() - mean.square()).clamp(min=0).sqrt()
    deviation[deviation == 0] = 1.0
    return mean, deviation


def normalise(images: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Return (images − mean) / deviation per channel as float32 (N, C, H, W)."""
    mean, deviation = (value.to(images.device, torch.float32).view(1, -1, 1, 1) for value in (mean, deviation))
    return images.to(torch.float32).sub_(mean).div_(deviation)
