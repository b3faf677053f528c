"""Decoding of encoded images to RGB pixels, with a name for each that cannot be decoded."""

from __future__ import annotations

__all__ = ["decode", "decode_all"]

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


def decode(
    source: BinaryIO | Path, origin: str, *, size: int | None = None, box: Callable[[int, int], Box] | None = None
) -> npt.NDArray[np.uint8]:
    """Return an encoded image as RGB, uint8 (H, W, 3).

    Args:
        source: The file, or its bytes.
        origin: What errors call it.
        size: Height and width to bring it to, bilinearly with antialiasing; None leaves it as it is.
        box: The part to bring to that size, from the image's width and height; by default the largest square in
            the middle.

    Raises:
        ValueError: It cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(source) as opened:
            image = opened.convert("RGB")
            if size is not None:
                image = image.resize(
                    (size, size), Image.Resampling.BILINEAR, box=(box or square)(image.width, image.height)
                )  # fmt: skip
            pixels: npt.NDArray[np.uint8] = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"The image in {origin} cannot be decoded: {error}") from error
    return pixels


def square(width: int, height: int, share: float = 1.0) -> Box:
    """The square in the middle whose side is a share of the shorter one."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def decode_all(
    count: int, load: Callable[[int], npt.NDArray[np.uint8]], origin: Callable[[int], str]
) -> torch.Tensor:  # fmt: skip
    """Decode into one uint8 tensor (N, 3, H, W), with threads, because the decoder releases the lock.

    Raises:
        ValueError: An image has another size than the first.
    """
    first = load(0)
    images = np.empty((count, 3, *first.shape[:2]), dtype=np.uint8)

    def fill(row: int) -> None:
        image = load(row)
        if image.shape != first.shape:
            raise ValueError(f"{origin(row)} is {image.shape[:2]} pixels, the first image {first.shape[:2]}.")
        images[row] = image.transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(count)):
            pass
    return torch.from_numpy(images)
