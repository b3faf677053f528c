"""Augmentation of whole batches, on the device where they are; every draw comes from a CPU generator."""

from __future__ import annotations

__all__ = ["Augment", "compose", "crop_boxes", "crop_flip", "cutout", "flip", "random_shift", "resized_crop"]

import math
from collections.abc import Callable

import torch

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Maps a batch (N, C, H, W) to its augmented form, drawing from the given CPU generator only.

What it draws depends on the shape alone: to repeat the draws of a batch that is skipped, it is called with a tensor
without values, on the device `meta`.
"""

# The areas and shapes of crops that networks on ImageNet are commonly trained with (Szegedy et al., arXiv 1409.4842).
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


def compose(*augments: Augment) -> Augment:
    """Apply one after another, all of them drawing from one generator."""

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        for step in augments:
            x = step(x, generator)
        return x

    return augment


def random_shift(pixels: int = 4) -> Augment:
    """Shift each sample by −pixels … +pixels along H and W, independently; zeros come in at the border.

    That is a random crop from the zero-padded sample; zero is the mean of a normalised image.
    """
    _check(pixels=pixels)

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        top, left = torch.randint(0, 2 * pixels + 1, (2, len(x), 1), generator=generator).to(x.device)
        rows = top + torch.arange(x.shape[2], device=x.device)
        columns = left + torch.arange(x.shape[3], device=x.device)
        padded = torch.nn.functional.pad(x, (pixels,) * 4)
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        # Index tensors around a slice put the sliced axis last: (N, H, W, C).
        taken = padded[sample, :, rows[:, :, None], columns[:, None, :]]
        return taken.permute(0, 3, 1, 2).contiguous()

    return augment


def flip() -> Augment:
    """Mirror every other sample left to right."""

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        mirrored = (torch.rand(len(x), 1, generator=generator) < 0.5).to(x.device)
        return torch.where(mirrored[:, :, None, None], x.flip(3), x)

    return augment


def crop_flip(padding: int = 4) -> Augment:
    """Shift each sample by up to `padding` pixels, and mirror every other one left to right."""
    _check(padding=padding)
    return compose(random_shift(padding), flip())


def cutout(pixels: int = 8) -> Augment:
    """Set a square of so many pixels to zero, at a random place of each sample (DeVries & Taylor, arXiv 1708.04552).

    Its centre is any pixel, so that part of it may lie outside.
    """
    _check(pixels=pixels)

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        rows, columns = (_window(len(x), side, pixels, generator).to(x.device) for side in x.shape[2:])
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    return augment


def resized_crop() -> Augment:
    """Stretch a random part of each sample, of 8 % to all of its area, to its full size, bilinearly."""

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        height, width = x.shape[2:]
        left, top, across, down = crop_boxes(len(x), height, width, generator).unbind(1)
        theta = torch.zeros(len(x), 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = across / width, (2 * left + across) / width - 1
        theta[:, 1, 1], theta[:, 1, 2] = down / height, (2 * top + down) / height - 1
        grid = torch.nn.functional.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)

    return augment


def crop_boxes(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Draw boxes within an image: (N, 4) float32, left, top, width and height in pixels.

    The area is uniform in 8 % to 100 %, the logarithm of width over height in that of 3/4 to 4/3. A side longer
    than the image's is cut to it.
    """
    area, ratio, across, down = torch.rand(4, count, generator=generator)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
    low, high = map(math.log, _RATIO)
    ratio = (low + (high - low) * ratio).exp()
    boxes_width, boxes_height = (area * ratio).sqrt().clamp(max=width), (area / ratio).sqrt().clamp(max=height)
    return torch.stack([across * (width - boxes_width), down * (height - boxes_height), boxes_width, boxes_height], 1)


def _window(count: int, side: int, pixels: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a window along one axis for each sample: (N, side), true inside."""
    offset = torch.arange(side) - torch.randint(0, side, (count, 1), generator=generator) + pixels // 2
    return (offset >= 0) & (offset < pixels)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}.")
