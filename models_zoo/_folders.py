"""Readers of images in class folders: ImageNet's layout and Tiny-ImageNet's."""

from __future__ import annotations

__all__ = ["image_files", "image_folder"]

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from autorep_fx.models_zoo._decode import decode, decode_all
from autorep_fx.models_zoo._images import ImageData, Split, channel_statistics, stratified_parts
from autorep_fx.models_zoo._stream import Files

_SUFFIXES = (".jpeg", ".jpg", ".png")
_ANNOTATIONS = "val_annotations.txt"
_LARGEST = 16 * 2**30  # bytes; beyond, a set is not meant to be in memory
_EXPECTED = (
    "expected train/CLASS/*.JPEG and val/CLASS/*.JPEG (ImageNet), or train/CLASS/images/*.JPEG, val/images/*.JPEG and "
    "val/val_annotations.txt (Tiny-ImageNet)"
)


class _Listing(NamedTuple):
    """Files of one part, relative to the data set's folder, and the class index of each."""

    names: list[str]
    labels: list[int]


def image_folder(
    folder: str | Path,
    *,
    image_size: int | None = None,
    validation: int = 5000,
    seed: int = 0,
    limit: int | None = None,
) -> ImageData[Split]:
    """Read images in class folders into memory, as uint8 (N, 3, H, W).

    Two layouts are known: `train/CLASS/*.JPEG` with `val/CLASS/*.JPEG`, as ImageNet is unpacked; and
    `train/CLASS/images/*.JPEG` with `val/images/*.JPEG` and `val/val_annotations.txt`, as Tiny-ImageNet comes. The
    classes are the folders of `train` in alphabetical order. What is in `val` is the test part, and the validation
    part is taken from `train`, so that nothing is chosen by what is reported. Images are normalised with the
    training part's mean and deviation. Needs pillow (`autorep-fx[parquet]`).

    Args:
        folder: Where `train` and `val` are.
        image_size: Height and width to bring the square in the middle of each image to; None where all are of one
            size already.
        validation: Images taken from the training folders, every class in proportion.
        seed: Decides, alone, which images those are; zero or more.
        limit: At most so many images in each of the three parts, every class in proportion, for a quick trial.

    Raises:
        ImportError: pillow is missing.
        FileNotFoundError: A folder or file of the layout is missing.
        ValueError: The layout is another, an image cannot be decoded or has another size than the rest,
            `validation` leaves nothing to train on, or the set is too large to be in memory.
    """
    parts, classes = _parts(Path(folder), image_size, validation, seed, limit)
    _check_memory(parts)
    images = [_decoded(part) for part in parts]
    sizes = {tuple(pixels.shape[2:]) for pixels in images if len(pixels)}
    if len(sizes) > 1:
        raise ValueError(f"The images of train and val are of several sizes, {sorted(sizes)}; give image_size.")
    statistics = channel_statistics(images[0])
    train, held_out, test = (
        Split(pixels, part.y, statistics) for pixels, part in zip(images, parts, strict=True)
    )  # fmt: skip
    return ImageData(train, held_out, test, classes)


def image_files(
    folder: str | Path,
    *,
    image_size: int = 224,
    validation: int = 5000,
    seed: int = 0,
    limit: int | None = None,
) -> ImageData[Files]:
    """List images in class folders, which `FileBatches` decodes as they are needed.

    The layouts, the parts and the arguments are those of `image_folder`; batches are normalised with the mean and
    deviation of ImageNet.

    Raises:
        ImportError: pillow is missing.
        FileNotFoundError: A folder or file of the layout is missing.
        ValueError: The layout is another, or `validation` leaves nothing to train on.
    """
    (train, held_out, test), classes = _parts(Path(folder), image_size, validation, seed, limit)
    return ImageData(train, held_out, test, classes)


def _parts(
    root: Path, image_size: int | None, validation: int, seed: int, limit: int | None
) -> tuple[list[Files], tuple[str, ...]]:
    """Return train, validation and test, and the classes."""
    if validation < 0 or (limit is not None and limit < 1) or (image_size is not None and image_size < 1):
        raise ValueError(
            "validation must be 0 or more, limit and image_size 1 or more, "
            f"got {validation}, {limit} and {image_size}."
        )  # fmt: skip
    _require_pillow()
    classes = _classes(root)
    train, test = _class_folders(root, "train", classes), _test_part(root, classes)
    if limit is not None:
        validation = min(validation, limit)
    if validation >= len(train.names):
        raise ValueError(f"validation={validation} leaves nothing of {len(train.names)} images to train on.")
    sizes = [validation, len(train.names) - validation]
    if limit is not None:
        sizes[1] = min(sizes[1], limit)
    labels = torch.tensor(train.labels)
    held_out, kept = stratified_parts(labels, sizes, seed)[:2]
    test_labels = torch.tensor(test.labels)
    tested = stratified_parts(test_labels, (min(limit or len(test_labels), len(test_labels)),), seed)[0]
    names, test_names = (np.array([os.fsencode(name) for name in part.names]) for part in (train, test))
    return [
        Files(root, names[kept.numpy()], labels[kept], image_size),
        Files(root, names[held_out.numpy()], labels[held_out], image_size),
        Files(root, test_names[tested.numpy()], test_labels[tested], image_size),
    ], classes


def _classes(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in `train`, in alphabetical order."""
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {str(root)!r}; {_EXPECTED}.")
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise FileNotFoundError(f"No folder {part!r} in {str(root)!r}, which holds {_held(root)}; {_EXPECTED}.")
    classes = tuple(sorted(entry.name for entry in os.scandir(root / "train") if entry.is_dir()))
    if not classes:
        raise ValueError(
            f"No class folder in {str(root / 'train')!r}, which holds {_held(root / 'train')}; {_EXPECTED}."
        )
    listed = root / "wnids.txt"
    missing = sorted(set(listed.read_text().split()) - set(classes)) if listed.is_file() else []
    if missing:
        raise ValueError(f"{listed.name} names {len(missing)} classes without a folder in train: {_some(missing)}.")
    return classes


def _test_part(root: Path, classes: Sequence[str]) -> _Listing:
    """Return what is in `val`: class folders, or images whose classes a file tells."""
    if (root / "val" / _ANNOTATIONS).is_file() and (root / "val" / "images").is_dir():
        return _annotated(root, classes)
    found = sorted(entry.name for entry in os.scandir(root / "val") if entry.is_dir())
    if not found:
        raise ValueError(f"No class folder in {str(root / 'val')!r}, which holds {_held(root / 'val')}; {_EXPECTED}.")
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise ValueError(f"val has {len(unknown)} folders that train has not: {_some(unknown)}; {_EXPECTED}.")
    return _class_folders(root, "val", [name for name in classes if name in set(found)], classes)


def _annotated(root: Path, classes: Sequence[str]) -> _Listing:
    """Read `val_annotations.txt`: per line the file, its class and a box, with tabs between them."""
    index = {name: label for label, name in enumerate(classes)}
    present = set(_images(root / "val" / "images"))
    names, labels = [], []
    for number, line in enumerate((root / "val" / _ANNOTATIONS).read_text().splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.split("\t")[0].strip()
        if name not in index or file not in present:
            what = f"no folder of train is called {name!r}" if name not in index else f"val/images has no {file!r}"
            raise ValueError(f"Line {number} of {_ANNOTATIONS} is {line[:60]!r}, and {what}.")
        names.append(f"val/images/{file}")
        labels.append(index[name])
    if not names:
        raise ValueError(f"{_ANNOTATIONS} is empty; {_EXPECTED}.")
    return _Listing(names, labels)


def _class_folders(root: Path, part: str, found: Sequence[str], classes: Sequence[str] | None = None) -> _Listing:
    """List the images of each class: in its folder, or in `images` inside it."""
    index = {name: label for label, name in enumerate(classes or found)}
    names, labels = [], []
    for name in found:
        inner = f"{part}/{name}"
        images = _images(root / inner)
        if not images and (root / inner / "images").is_dir():
            inner += "/images"
            images = _images(root / inner)
        if not images:
            raise ValueError(
                f"No .JPEG, .jpg or .png image in {inner!r}, which holds {_held(root / inner)}; {_EXPECTED}."
            )
        names += [f"{inner}/{image}" for image in images]
        labels += [index[name]] * len(images)
    return _Listing(names, labels)


def _images(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(_SUFFIXES))


def _decoded(files: Files) -> torch.Tensor:
    if not len(files):
        return torch.zeros(0, 3, 1, 1, dtype=torch.uint8)

    def origin(row: int) -> str:
        return os.fsdecode(files.names[row])

    return decode_all(
        len(files), lambda row: decode(files.path(row), origin(row), size=files.image_size), origin
    )  # fmt: skip


def _check_memory(parts: Sequence[Files]) -> None:
    first, count = parts[0], sum(map(len, parts))
    height, width = decode(first.path(0), os.fsdecode(first.names[0]), size=first.image_size).shape[:2]
    needed = 3 * count * height * width
    if needed > _LARGEST:
        raise ValueError(
            f"{count:,} images of {height}×{width} pixels are {needed / 2**30:.0f} GiB, too much for memory; give a "
            "smaller image_size, or leave them in files (image_files; in a pipeline file, resident: false)."
        )


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Reading images needs pillow ({error}). Run: pip install autorep-fx[parquet]"
        ) from error  # fmt: skip


def _held(folder: Path) -> str:
    """The first names in a folder."""
    return _some(sorted(entry.name for entry in os.scandir(folder))) or "nothing"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
