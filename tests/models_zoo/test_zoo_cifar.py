"""The parquet reader, on small files written here; the real data is never needed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autorep_fx.models_zoo.data import cifar

PARQUET = "needs pyarrow and pillow: pip install autorep-fx[parquet]"


def png(value: int, side: int = 32) -> bytes:
    image = pytest.importorskip("PIL.Image", reason=PARQUET)
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[..., 0], pixels[0, :, 1], pixels[:, 0, 2] = value, 200, 100
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(
    path: Path,
    images: list[bytes | None],
    labels: list[int],
    columns: tuple[str, str] = ("img", "label"),
    names: list[str] | None = None,
) -> None:
    pa = pytest.importorskip("pyarrow", reason=PARQUET)
    pq = pytest.importorskip("pyarrow.parquet", reason=PARQUET)
    rows = [{"bytes": image, "path": ""} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({columns[0]: pa.array(rows, kind), columns[1]: pa.array(labels, pa.int64())})
    if names is not None:
        features = {"info": {"features": {columns[1]: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path)


def fill(folder: Path, columns: tuple[str, str] = ("img", "label"), names: list[str] | None = None) -> Path:
    """Two training shards of 20 images and one of 10 test images, ten classes in turn; red = row number."""
    for shard in range(2):
        rows = range(20 * shard, 20 * shard + 20)
        path = folder / f"train-{shard:05d}-of-00002.parquet"
        write(path, [png(row) for row in rows], [row % 10 for row in rows], columns, names)
    path = folder / "test-00000-of-00001.parquet"
    write(path, [png(100 + row) for row in range(10)], list(range(10)), columns, names)
    return folder


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "fine_label")])
def test_reads_both_layouts_and_all_shards(tmp_path: Path, columns: tuple[str, str]) -> None:
    """CIFAR-10's and CIFAR-100's column names work, and every shard is read, in (N, 3, 32, 32)."""
    data = cifar(fill(tmp_path, columns), validation=10)
    assert data.train.x.shape == (30, 3, 32, 32)
    assert data.validation.x.shape == (10, 3, 32, 32)
    assert data.test.y.tolist() == list(range(10))
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64
    assert data.validation.y.bincount().tolist() == [1] * 10


def test_normalised_by_train_and_oriented(tmp_path: Path) -> None:
    """The training part has mean 0 and deviation 1 per channel, rows stay rows, and red keeps its order."""
    data = cifar(fill(tmp_path), validation=0)
    assert len(data.validation) == 0
    torch.testing.assert_close(data.train.x.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.train.x.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=0)
    green, blue = data.test.x[0, 1], data.test.x[0, 2]
    assert green[0].min() > green[1:].max()
    assert blue[:, 0].min() > blue[:, 1:].max()
    assert bool((data.train.x[:, 0, 5, 5].diff() > 0).all())


def test_seed_decides_validation(tmp_path: Path) -> None:
    """The same seed holds out the same images, another seed others."""
    fill(tmp_path)
    one, same, other = (cifar(tmp_path, validation=10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.validation.x, same.validation.x)
    assert not torch.equal(one.validation.x, other.validation.x)


def test_limit(tmp_path: Path) -> None:
    """No part has more than `limit` images."""
    data = cifar(fill(tmp_path), validation=20, limit=7)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [7, 7, 7]


def test_class_names(tmp_path: Path) -> None:
    """Names in the file's own description are used; without any, ten classes are CIFAR-10's."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    names = [f"kind {index}" for index in range(10)]
    assert cifar(fill(first, names=names), validation=0).classes == tuple(names)
    assert cifar(fill(second), validation=0).classes[:2] == ("airplane", "automobile")


def test_other_class_counts_get_numbers(tmp_path: Path) -> None:
    """Classes that nothing names are called by their index."""
    for part in ("train", "test"):
        write(tmp_path / f"{part}-0.parquet", [png(1), png(2), png(3)], [0, 1, 2])
    assert cifar(tmp_path, validation=1).classes == ("0", "1", "2")


@pytest.mark.parametrize("module", ["pyarrow.parquet", "PIL.Image"])
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Without pyarrow or pillow the error names the extra to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install autorep-fx\[parquet\]"):
        cifar(tmp_path)


@pytest.mark.parametrize("options", [{"validation": -1}, {"limit": 0}])
def test_refuses_impossible_sizes(tmp_path: Path, options: dict[str, int]) -> None:
    """Negative sizes are refused before anything is read."""
    with pytest.raises(ValueError, match="0 or more and limit 1 or more"):
        cifar(tmp_path, **options)


def test_missing_folder_or_part(tmp_path: Path) -> None:
    """What is missing is named, and what the folder holds instead."""
    pytest.importorskip("pyarrow", reason=PARQUET)
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere"):
        cifar(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No train-\*\.parquet .* holds nothing"):
        cifar(tmp_path)
    write(tmp_path / "train-0.parquet", [png(1)], [0])
    with pytest.raises(FileNotFoundError, match=r"No test-\*\.parquet .* holds train-0\.parquet"):
        cifar(tmp_path)


def test_validation_takes_all(tmp_path: Path) -> None:
    """A validation part that leaves no training image is refused."""
    with pytest.raises(ValueError, match="validation=40 leaves nothing of 40 images"):
        cifar(fill(tmp_path), validation=40)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (("picture", "label"), "needs a column img or image; it has picture, label"),
        (("img", "coarse_label"), "needs a column label or fine_label; it has img, coarse_label"),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: tuple[str, str], reason: str) -> None:
    """Other column names are an error that lists those found."""
    with pytest.raises(ValueError, match=reason):
        cifar(fill(tmp_path, columns))


def test_wrong_column_types(tmp_path: Path) -> None:
    """An image column without `bytes` and labels that are no integers are refused with their type."""
    pa = pytest.importorskip("pyarrow", reason=PARQUET)
    pq = pytest.importorskip("pyarrow.parquet", reason=PARQUET)
    write(tmp_path / "test-0.parquet", [png(1)], [0])
    pq.write_table(pa.table({"img": [b"x"], "label": [0]}), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"'img' of train-0\.parquet must be a struct .* got binary"):
        cifar(tmp_path)
    pq.write_table(pa.table({"img": [{"bytes": b"x"}], "label": ["cat"]}), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"'label' of train-0\.parquet must be integers .* got string"):
        cifar(tmp_path)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"no image", "row 1 of train-0.parquet cannot be decoded"),
        (None, "row 1 of train-0.parquet is empty"),
        ("truncated", "row 1 of train-0.parquet cannot be decoded"),
        ("small", r"row 1 of train-0.parquet is \(16, 16\) pixels, the first image \(32, 32\)"),
    ],
)
def test_broken_images(tmp_path: Path, broken: bytes | str | None, reason: str) -> None:
    """An image that cannot be used is named by file and row."""
    made = {"truncated": png(1)[:-30], "small": png(1, side=16)}
    image = made[broken] if isinstance(broken, str) else broken
    write(tmp_path / "train-0.parquet", [png(1), image, png(2)], [0, 1, 2])
    write(tmp_path / "test-0.parquet", [png(1)], [0])
    with pytest.raises(ValueError, match=reason):
        cifar(tmp_path, validation=1)


def test_no_parquet_file(tmp_path: Path) -> None:
    """A file that is no parquet is refused by name."""
    pytest.importorskip("pyarrow", reason=PARQUET)
    for part in ("train", "test"):
        (tmp_path / f"{part}-0.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"train-0\.parquet is no readable parquet file"):
        cifar(tmp_path)


def test_no_rows(tmp_path: Path) -> None:
    """Files without rows are refused."""
    write(tmp_path / "train-0.parquet", [], [])
    write(tmp_path / "test-0.parquet", [], [])
    with pytest.raises(ValueError, match=r"No rows in train-0\.parquet"):
        cifar(tmp_path)
