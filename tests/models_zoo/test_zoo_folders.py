"""Images in class folders, on small files written here: both layouts, in memory and from files."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from autorep_fx.models_zoo import _folders
from autorep_fx.models_zoo.data import Batches, EpochBatches, FileBatches, cutout, flip, image_files, image_folder

PILLOW = "needs pillow: pip install autorep-fx[parquet]"
NAMES = ("n01", "n02", "n03")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = [
    # Worker processes are forked, as torch does by default on Linux; from Python 3.12 on, that warns beside threads.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # A machine of one core is told that two workers are many.
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning"),
]


def save(path: Path, value: int = 0, height: int = 64, width: int = 64) -> None:
    """A JPEG whose red is `value` and whose green grows to the right."""
    image = pytest.importorskip("PIL.Image", reason=PILLOW)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = value, np.linspace(0, 255, width).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path, quality=95)


def imagenet(folder: Path, height: int = 80, width: int = 100) -> Path:
    """Eight images of each of three classes in train, two in val; red is 40 times the class plus the number."""
    for label, name in enumerate(NAMES):
        for number in range(8):
            save(folder / "train" / name / f"{name}_{number}.JPEG", 40 * label + number, height, width)
        for number in range(2):
            save(folder / "val" / name / f"val_{number}.JPEG", 40 * label + number, height, width)
    return folder


def tiny(folder: Path) -> Path:
    """The same as Tiny-ImageNet is laid out, with val in another order than that of the classes."""
    for label, name in enumerate(NAMES):
        for number in range(8):
            save(folder / "train" / name / "images" / f"{name}_{number}.JPEG", 40 * label + number)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("")
    lines = []
    for number, label in enumerate((2, 0, 1, 1, 0, 2)):
        save(folder / "val" / "images" / f"val_{number}.JPEG", 40 * label)
        lines.append(f"val_{number}.JPEG\t{NAMES[label]}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("n03\nn01\nn02\n")
    return folder


def labels_by_red(x: torch.Tensor) -> list[int]:
    """The class that the red of uint8 images (N, 3, H, W) stands for."""
    return [round(float(red)) // 40 for red in x[:, 0].float().mean((1, 2))]


@pytest.mark.parametrize("make", [imagenet, tiny])
def test_both_layouts_in_memory(tmp_path: Path, make: object) -> None:
    """Parts, labels that belong to the images, classes in alphabetical order, uint8, normalised by train."""
    assert callable(make)
    data = image_folder(make(tmp_path), image_size=64, validation=6)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 6, 6]
    assert data.classes == NAMES
    assert data.validation.y.bincount().tolist() == [2, 2, 2]
    for part in (data.train, data.validation, data.test):
        assert part.images.shape[1:] == (3, 64, 64)
        assert part.images.dtype == torch.uint8
        assert labels_by_red(part.images) == part.y.tolist()
    torch.testing.assert_close(data.train.x.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    batches = Batches(data.train, 5, shuffle=False)
    assert torch.equal(torch.cat([x for x, _ in batches]), data.train.x)
    assert data.train.x.dtype == torch.float32


def test_both_layouts_from_files(tmp_path: Path) -> None:
    """The same parts as in memory, normalised with the constants of ImageNet."""
    imagenet(tmp_path)
    files, memory = (
        image_files(tmp_path, image_size=32, validation=6),
        image_folder(tmp_path, image_size=32, validation=6),
    )
    assert torch.equal(files.train.y, memory.train.y)
    x, y = next(iter(FileBatches(files.test, 6, shuffle=False)))
    assert x.shape == (6, 3, 32, 32)
    assert torch.equal(y, memory.test.y)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    pixels = (x * deviation + mean) * 255
    assert labels_by_red(pixels) == y.tolist()
    # 7/8 of the shorter side from the middle: green grows to the right over 70 of 100 columns.
    assert pixels[0, 1, 16, 0] == pytest.approx(0.15 * 255 + 2.8, abs=4)
    assert pixels[0, 1, 16, -1] == pytest.approx(0.85 * 255 - 2.8, abs=4)


def test_seed_decides_the_parts(tmp_path: Path) -> None:
    """The same seed holds out the same files, another seed others; no file is in two parts."""
    imagenet(tmp_path)
    one, same, other = (image_files(tmp_path, validation=6, seed=seed) for seed in (0, 0, 1))
    assert one.validation.names.tolist() == same.validation.names.tolist() != other.validation.names.tolist()
    assert not set(one.train.names) & set(one.validation.names)
    assert len(set(one.train.names) | set(one.validation.names)) == 24


def test_limit_keeps_the_classes(tmp_path: Path) -> None:
    """No part has more than `limit` images, and every class is there."""
    data = image_files(imagenet(tmp_path), validation=12, limit=3)
    for part in (data.train, data.validation, data.test):
        assert sorted(part.y.tolist()) == [0, 1, 2]


def _epochs(batches: EpochBatches, count: int) -> list[torch.Tensor]:
    return [value for _ in range(count) for pair in batches for value in pair]


def test_workers_change_nothing(tmp_path: Path) -> None:
    """With two processes the same batches as with none, over two epochs, crops and flips included."""
    data = image_files(imagenet(tmp_path), image_size=16, validation=0)
    none, two = (
        FileBatches(data.train, 5, seed=3, random_crop=True, workers=workers, augment=flip()) for workers in (0, 2)
    )
    for ours, theirs in zip(_epochs(none, 2), _epochs(two, 2), strict=True):
        assert torch.equal(ours, theirs)


def test_workers_beside_jax(tmp_path: Path) -> None:
    """JAX forbids to fork its process, on pain of a deadlock: workers start otherwise, and give the same data."""
    jax = pytest.importorskip("jax", reason="comes with the extra 'secure'")
    jax.numpy.zeros(3).block_until_ready()
    data = image_files(imagenet(tmp_path), image_size=16, validation=0)
    none, two = (FileBatches(data.train, 5, seed=3, workers=workers) for workers in (0, 2))
    for ours, theirs in zip(_epochs(none, 1), _epochs(two, 1), strict=True):
        assert torch.equal(ours, theirs)


def test_crops_differ_between_epochs_and_seeds(tmp_path: Path) -> None:
    """The part of a sample that is taken depends on seed and epoch, and without random_crop on neither."""
    data = image_files(imagenet(tmp_path), image_size=16, validation=0)
    for random_crop in (True, False):
        one, other = (FileBatches(data.train, 24, seed=seed, shuffle=False, random_crop=random_crop) for seed in (0, 1))
        found = [next(iter(batches))[0] for batches in (one, one, other)]
        assert all(torch.equal(found[0], x) != random_crop for x in found[1:])


@pytest.mark.parametrize("workers", [0, 2])
def test_files_resume_in_the_middle_of_an_epoch(tmp_path: Path, workers: int) -> None:
    """A new object that loads the state sees the remaining batches with the same crops, flips and holes."""
    data = image_files(imagenet(tmp_path), image_size=16, validation=0)

    def make() -> FileBatches:
        return FileBatches(
            data.train, 5, seed=1, random_crop=True, workers=workers, augment=lambda x, g: cutout(4)(flip()(x, g), g)
        )  # fmt: skip

    run = make()
    run.set_epoch(2)
    whole = list(run)
    run.set_epoch(2)
    list(islice(run, 2))
    resumed = make()
    assert run.state_dict() == {"epoch": 2, "batch": 2}
    resumed.load_state_dict(run.state_dict())
    rest = list(resumed)
    assert len(rest) == 3
    for (x, y), (x2, y2) in zip(whole[2:], rest, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_files_leave_the_global_generator_alone(tmp_path: Path) -> None:
    """Nothing is drawn from it, with worker processes neither."""
    data = image_files(imagenet(tmp_path), image_size=16, validation=0)
    before = torch.get_rng_state()
    list(FileBatches(data.train, 12, workers=2, random_crop=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    """In memory when it is read, from files when its batch comes."""
    imagenet(tmp_path)
    (tmp_path / "train" / "n02" / "n02_3.JPEG").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"n02_3\.JPEG cannot be decoded"):
        image_folder(tmp_path, image_size=16, validation=0)
    data = image_files(tmp_path, image_size=16, validation=0)
    with pytest.raises(ValueError, match=r"n02_3\.JPEG cannot be decoded"):
        list(FileBatches(data.train, 8))


def test_sizes_must_agree(tmp_path: Path) -> None:
    """Without image_size all images are of one size, those of val as well."""
    imagenet(tmp_path)
    assert image_folder(tmp_path, validation=0).train.images.shape == (24, 3, 80, 100)
    save(tmp_path / "val" / "n01" / "other.JPEG", height=40)
    with pytest.raises(ValueError, match=r"is \(80, 100\) pixels, the first image \(40, 64\)|is \(40, 64\) pixels"):
        image_folder(tmp_path, validation=0)
    for path in (tmp_path / "val").rglob("*.JPEG"):
        save(path, height=40)
    with pytest.raises(ValueError, match="train and val are of several sizes"):
        image_folder(tmp_path, validation=0)


def test_a_set_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it is read, with what to do."""
    monkeypatch.setattr(_folders, "_LARGEST", 30 * 3 * 16 * 16 - 1)
    with pytest.raises(ValueError, match=r"30 images of 16×16 pixels .* resident: false"):
        image_folder(imagenet(tmp_path), image_size=16, validation=0)


def test_wrong_layouts(tmp_path: Path) -> None:
    """Each error says what was found and what is expected."""
    expected = r"expected train/CLASS/\*\.JPEG"
    with pytest.raises(FileNotFoundError, match=rf"No folder .*nowhere.*{expected}"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"No folder 'val' .* holds train; {expected}"):
        image_files(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=rf"No class folder in .*train.* holds nothing; {expected}"):
        image_files(tmp_path)
    (tmp_path / "train" / "n01").mkdir()
    (tmp_path / "train" / "n01" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=rf"image in 'train/n01', which holds notes\.txt; {expected}"):
        image_files(tmp_path)


def test_a_flat_val_is_refused(tmp_path: Path) -> None:
    """ImageNet's validation archive has no class folders; what is there is named."""
    save(tmp_path / "train" / "n01" / "a.JPEG")
    for number in range(10):
        save(tmp_path / "val" / f"ILSVRC2012_val_{number}.JPEG")
    with pytest.raises(ValueError, match=r"No class folder in .*val.*ILSVRC2012_val_0\.JPEG, .* and 2 more; expected"):
        image_files(tmp_path)


def test_classes_that_do_not_fit(tmp_path: Path) -> None:
    """A folder that only val has, and a name in wnids.txt without a folder."""
    imagenet(tmp_path)
    save(tmp_path / "val" / "n09" / "a.JPEG")
    with pytest.raises(ValueError, match="val has 1 folders that train has not: n09"):
        image_files(tmp_path, validation=0)
    (tmp_path / "wnids.txt").write_text("n01 n02 n03 n07")
    with pytest.raises(ValueError, match=r"wnids\.txt names 1 classes without a folder in train: n07"):
        image_files(tmp_path, validation=0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("val_0.JPEG\tn09\t0", r"Line 7 of val_annotations\.txt .* no folder of train is called 'n09'"),
        ("val_9.JPEG\tn01\t0", r"Line 7 of val_annotations\.txt .* val/images has no 'val_9\.JPEG'"),
    ],
)
def test_annotations_that_do_not_fit(tmp_path: Path, line: str, reason: str) -> None:
    """A class that train has not and a file that is not there are told with their line."""
    path = tiny(tmp_path) / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=reason):
        image_files(tmp_path, validation=0)
    path.write_text("")
    with pytest.raises(ValueError, match=r"val_annotations\.txt is empty"):
        image_files(tmp_path, validation=0)


def test_impossible_arguments(tmp_path: Path) -> None:
    """Negative sizes, a validation part that takes everything, workers below zero, no pillow."""
    imagenet(tmp_path)
    for options in ({"validation": -1}, {"limit": 0}, {"image_size": 0}):
        with pytest.raises(ValueError, match="validation must be 0 or more, limit and image_size 1 or more"):
            image_files(tmp_path, **options)
    with pytest.raises(ValueError, match="validation=24 leaves nothing of 24 images"):
        image_files(tmp_path, validation=24)
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        FileBatches(image_files(tmp_path, validation=0).train, 2, workers=-1)


def test_missing_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install autorep-fx\[parquet\]"):
        image_files(tmp_path)
