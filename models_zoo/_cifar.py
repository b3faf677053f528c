"""Reader of CIFAR-10 and CIFAR-100 in the parquet layout of the Hugging Face hub."""

from __future__ import annotations

__all__ = ["cifar"]

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from autorep_fx.models_zoo._decode import decode, decode_all
from autorep_fx.models_zoo._images import ImageData, Split, channel_statistics, stratified_parts

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Part(NamedTuple):
    """The decoded rows of one part: uint8 (N, C, H, W), int64 (N,), and class names if the file has them."""

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...] | None


def cifar(folder: str | Path, *, validation: int = 5000, seed: int = 0, limit: int | None = None) -> ImageData[Split]:
    """Read `train-*.parquet` and `test-*.parquet`, (N, 3, 32, 32), kept in memory as uint8.

    Each file has a column `img` or `image`, a struct with the encoded image in `bytes`, and a column `label`
    or `fine_label`. Images are normalised per channel with the training part's mean and deviation. Needs the
    extra `autorep-fx[parquet]`.

    Args:
        folder: Where the files are; each part may have several shards.
        validation: Images taken from the training files for validation, every class in proportion.
        seed: Decides, alone, which images those are; zero or more.
        limit: At most so many images in each of the three parts, the first of the files, for a quick trial.

    Raises:
        ImportError: pyarrow or pillow is missing.
        FileNotFoundError: The folder or one of its parts is missing.
        ValueError: A file has other columns, an image cannot be decoded or has another size than the rest,
            or `validation` leaves nothing to train on.
    """
    if validation < 0 or (limit is not None and limit < 1):
        raise ValueError(f"validation must be 0 or more and limit 1 or more, got {validation} and {limit}.")
    _require_parquet()
    shards = {part: _shards(Path(folder), part) for part in ("train", "test")}
    if limit is not None:
        validation = min(validation, limit)
    fit = _read(shards["train"], None if limit is None else limit + validation)
    if validation >= len(fit.labels):
        raise ValueError(f"validation={validation} leaves nothing of {len(fit.labels)} images to train on.")
    test = _read(shards["test"], limit)
    held_out, kept = stratified_parts(fit.labels, (validation,), seed)
    images = fit.images[kept]
    statistics = channel_statistics(images)
    return ImageData(
        Split(images, fit.labels[kept], statistics),
        Split(fit.images[held_out], fit.labels[held_out], statistics),
        Split(test.images, test.labels, statistics),
        fit.classes or _default_classes(torch.cat([fit.labels, test.labels])),
    )


def _require_parquet() -> None:
    try:
        import PIL.Image  # noqa: F401
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Reading parquet images needs pyarrow and pillow ({error}). Run: pip install autorep-fx[parquet]"
        ) from error


def _shards(folder: Path, part: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {str(folder)!r}.")
    found = sorted(folder.glob(f"{part}-*.parquet"))
    if not found:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"No {part}-*.parquet in {str(folder)!r}; it holds {names}.")
    return found


def _read(shards: Sequence[Path], limit: int | None) -> _Part:
    """Decode all rows of the shards in order, or the first `limit`."""
    encoded: list[bytes | None] = []
    origin: list[str] = []
    labels: list[int] = []
    classes = None
    for path in shards:
        if limit is not None and len(labels) >= limit:
            break
        images, names, shard_classes = _columns(path)
        encoded += images
        labels += names
        origin += [f"row {row} of {path.name}" for row in range(len(names))]
        classes = classes or shard_classes
    if not labels:
        raise ValueError(f"No rows in {', '.join(path.name for path in shards)}.")
    images_out = _decode_all(encoded[:limit], origin[:limit])
    return _Part(images_out, torch.tensor(labels[:limit], dtype=torch.int64), classes)


def _columns(path: Path) -> tuple[list[bytes | None], list[int], tuple[str, ...] | None]:
    """Return a shard's encoded images, its labels, and the class names in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        image = _first(_IMAGE_COLUMNS, schema.names, path)
        label = _first(_LABEL_COLUMNS, schema.names, path)
        kind = schema.field(image).type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise ValueError(f"Column {image!r} of {path.name} must be a struct with a field 'bytes', got {kind}.")
        table = pq.read_table(path, columns=[image, label])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name} is no readable parquet file: {error}") from error
    labels = table.column(label)
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise ValueError(f"Column {label!r} of {path.name} must be integers without gaps, got {labels.type}.")
    images = [None if row is None else row["bytes"] for row in table.column(image).to_pylist()]
    return images, labels.to_pylist(), _class_names(schema.metadata, label)


def _first(wanted: Sequence[str], names: Sequence[str], path: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"{path.name} needs a column {' or '.join(wanted)}; it has {', '.join(names)}.")


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """Return the label's class names from the description that the hub's own files carry, if it is there."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _default_classes(labels: torch.Tensor) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    return _CIFAR10 if count == len(_CIFAR10) else tuple(str(index) for index in range(count))


def _decode_all(encoded: Sequence[bytes | None], origin: Sequence[str]) -> torch.Tensor:
    def load(row: int) -> npt.NDArray[np.uint8]:
        data = encoded[row]
        if not data:
            raise ValueError(f"The image in {origin[row]} is empty.")
        return decode(io.BytesIO(data), origin[row])

    return decode_all(len(encoded), load, origin.__getitem__)
