"""The paper's experiments, each file on a small copy of its data's layout: counts, and two steps to the budget."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autorep_fx
from autorep_fx.config import PipelineConfig
from autorep_fx.config_io import load_yaml, parse_config
from autorep_fx.dry_run import dry_run

FOLDER = Path(__file__).parents[2] / "examples" / "pipelines"
LAYOUT = "needs pyarrow and pillow: pip install autorep-fx[parquet]"


@dataclass(frozen=True)
class Case:
    """A file of examples/pipelines.

    Attributes:
        file: Its name, without the suffix.
        layout: Of the data that it reads.
        classes: Outputs of the network.
        before: Comparisons of the network.
        budget: What the compiled network spends.
        counted: Comparisons that the paper counts, where it leaves some of `before` out.
        degree: Of the polynomials in two steps from random weights; squares of squares need a network that is trained.
    """

    file: str
    layout: str
    classes: int
    before: int
    budget: int
    counted: int | None = None
    degree: int = 2


CASES = [
    Case("cifar10_resnet18_12.9k", "cifar", 10, 491_520, 12_900),
    Case("cifar100_resnet18_12.9k", "cifar", 100, 491_520, 12_900),
    Case("cifar100_wrn22_8_150k", "cifar", 100, 1_359_872, 150_000),
    Case("tiny_imagenet_resnet18_55k", "tiny", 200, 1_966_080, 55_000),
    Case("imagenet_efficientnet_b2_50k", "imagenet", 1000, 8_818_946, 50_000, 8_803_536, degree=1),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)


def _encoded(seed: int, height: int, width: int, kind: str) -> bytes:
    image = pytest.importorskip("PIL.Image", reason=LAYOUT)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def _cifar(folder: Path, classes: int) -> None:
    """Six training and two test images; fine_label for a hundred classes, as the hub's files have it."""
    pa = pytest.importorskip("pyarrow", reason=LAYOUT)
    pq = pytest.importorskip("pyarrow.parquet", reason=LAYOUT)
    for part, count in (("train", 6), ("test", 2)):
        rows = [{"bytes": _encoded(row, 32, 32, "PNG"), "path": ""} for row in range(count)]
        labels = [row % classes for row in range(count)]
        table = pa.table({"img": rows, "label" if classes == 10 else "fine_label": labels})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")


def _tiny(folder: Path, classes: int) -> None:
    """Two classes of three images each in train, and two annotated ones in val."""
    for label in range(2):
        images = folder / "train" / f"n{label:08d}" / "images"
        images.mkdir(parents=True)
        for number in range(3):
            name = f"n{label:08d}_{number}.JPEG"
            (images / name).write_bytes(_encoded(3 * label + number, 64, 64, "JPEG"))
    (folder / "val" / "images").mkdir(parents=True)
    for label in range(2):
        (folder / "val" / "images" / f"val_{label}.JPEG").write_bytes(_encoded(label, 64, 64, "JPEG"))
    lines = "".join(f"val_{label}.JPEG\tn{label:08d}\t0\t0\t62\t62\n" for label in range(2))
    (folder / "val" / "val_annotations.txt").write_text(lines)
    (folder / "wnids.txt").write_text("n00000001\nn00000000\n")


def _imagenet(folder: Path, classes: int) -> None:
    """Two classes of three images each in train and one each in val, of several sizes."""
    for part, count in (("train", 3), ("val", 1)):
        for label in range(2):
            images = folder / part / f"n{label:08d}"
            images.mkdir(parents=True)
            for number in range(count):
                (images / f"{number}.JPEG").write_bytes(_encoded(label, 240 + 30 * number, 260, "JPEG"))


MAKE = {"cifar": _cifar, "tiny": _tiny, "imagenet": _imagenet}


def _require_timm() -> None:
    """Import timm, after the schemas that torchvision expects from its extension, which a CPU build does not load."""
    global _schemas
    if _schemas is None:
        _schemas = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):  # the extension did load
                _schemas.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    pytest.importorskip("timm", reason="needs timm: pip install timm", exc_type=ImportError)


_schemas: torch.library.Library | None = None


def _settings(case: Case, folder: Path, changes: dict[str, Any]) -> PipelineConfig:
    """The file's settings, for six images of which two are for validation, in batches of two."""
    text = load_yaml(FOLDER / f"{case.file}.yaml")
    if str(text["model"].get("spec", "")).startswith("timm:"):
        _require_timm()
    text["data"]["args"] = {**text["data"].get("args", {}), "validation": 2}
    text["data"]["batch_size"] = 2
    if "workers" in text["data"]["args"]:
        text["data"]["args"]["workers"] = 0
    config = parse_config(
        {**text, "calibration": {"samples": 2}, "device": "cpu", "verification": "structure", **changes}, PipelineConfig
    )
    assert isinstance(config, PipelineConfig)
    MAKE[case.layout](folder, case.classes)
    return config.with_overrides(data_folder=folder)


@EACH
def test_the_counts_are_the_papers(case: Case, tmp_path: Path) -> None:
    """Without training: every comparison is gateable, the budget holds for all of them, and the data have two steps."""
    config = _settings(case, tmp_path, {})
    found = dry_run(config)
    sites = found.inspection.sites
    assert sum(site.comparisons for site in sites) == found.allowance.gateable == case.before
    assert found.allowance.total == found.allowance.allowed == case.budget
    base = 0 if config.base is None else config.base.epochs
    assert found.steps == 2 * (base + config.training.epochs + config.finetune.epochs)
    if case.counted is not None:
        outside = [site for site in sites if "SqueezeExcite" not in str(site.owners)]
        assert sum(site.comparisons for site in outside) == case.counted
        assert {site.kind for site in outside} == {"relu"}
        assert round(case.counted / case.budget, 1) == 176.1


@EACH
def test_two_steps_lead_to_the_budget(case: Case, tmp_path: Path) -> None:
    """Base model, gates, projection, lowering, to exactly the budget; the lowered network compares no more."""
    changes = {
        "base": {"epochs": 1},
        "training": {"method": "autorep", "epochs": 1},
        "polynomials": {"degree": case.degree},
        "finetune": {"epochs": 0},
        "outputs": {"onnx": False, "report": False},
    }
    data = tmp_path / "data"
    data.mkdir()
    compiled = autorep_fx.run_pipeline(_settings(case, data, changes), tmp_path / "out")
    assert compiled.plan.comparisons == case.budget == autorep_fx.count_comparisons(compiled.module)
    assert [point.step for point in compiled.history][-1] == 2
    assert (tmp_path / "out" / "relu.safetensors").exists()
    side = {"cifar": 32, "tiny": 64, "imagenet": 224}[case.layout]
    with torch.no_grad():
        outputs = compiled.module(torch.zeros(2, 3, side, side))
    assert outputs.shape == (2, case.classes)
    assert bool(torch.isfinite(outputs).all())
