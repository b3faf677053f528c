"""The demo, run as a user runs it, and what it leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import autorep_fx
import independent_counter
from autorep_fx.models_zoo import create
from autorep_fx.models_zoo.data import digits
from autorep_fx.runtime import Session

ALLOWED = {"budget-5": 224, "budget-1": 44, "budget-0": 0}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `autorep-fx demo` wrote, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = "import sys; from autorep_fx.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", command, "demo", "--out", str(out)],
        capture_output=True, text=True, timeout=600, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar and no noise where there is no terminal
    return out, done.stdout


def test_accuracy_and_comparisons_are_as_promised(demo: tuple[Path, str]) -> None:
    """ReLU ≥ 97 % on the test part, each compiled model within 1.0 point, in torch and in onnxruntime."""
    rows = re.findall(r"│ (\S+) +│ +([\d,]+) → ([\d,]+) │ +([\d.]+)% │ +([\d.]+)% │", demo[1])
    assert [(name, before, after) for name, before, after, _, _ in rows] == [
        ("ReLU", "4,480", "4,480"), ("5%", "4,480", "224"), ("1%", "4,480", "44"), ("0", "4,480", "0")
    ]  # fmt: skip
    relu = float(rows[0][3])
    assert relu >= 97.0
    for row in rows:
        assert float(row[3]) == float(row[4]) >= relu - 1.0


@pytest.mark.parametrize("name", ALLOWED)
def test_count_plan_and_budget_agree(demo: tuple[Path, str], name: str) -> None:
    """An independent count of the ONNX file = the plan = the budget, and the folder is complete."""
    folder = demo[0] / name
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.onnx", "pipeline.yaml", "plan.json", "plan.safetensors", "report.html", "run.json",
        "settings.yaml", "training.csv", "training.jsonl", "weights.safetensors",
    ]  # fmt: skip
    counted = independent_counter.count(folder / "model.onnx")
    assert counted == json.loads((folder / "plan.json").read_text())["comparisons"] == ALLOWED[name]
    assert counted == autorep_fx.count_comparisons(folder / "model.onnx")


@pytest.mark.parametrize("name", ALLOWED)
def test_onnxruntime_predicts_what_torch_predicts(demo: tuple[Path, str], name: str) -> None:
    """On every test sample, with the model loaded from the folder in torch."""
    test = digits(0).test
    loaded = autorep_fx.load(demo[0] / name, create("digits_resnet"))
    with torch.no_grad():
        expected = loaded.module(test.x).numpy()
    found = Session(demo[0] / name / "model.onnx", device="cpu")(test.x.numpy())
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_same_run_through_the_file_and_through_python_gives_one_plan(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    """The pipeline file that the demo wrote, run again from its file, and its settings run in Python."""
    from autorep_fx.config_io import load_pipeline
    from autorep_fx.loading import load_data, load_model

    text = yaml.safe_load((demo[0] / "budget-5" / "pipeline.yaml").read_text())
    text["training"]["epochs"] = text["finetune"]["epochs"] = 1
    text["model"]["checkpoint"] = str(demo[0] / "relu" / "weights.safetensors")
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(text))
    through_file = autorep_fx.run_pipeline(tmp_path / "pipeline.yaml", tmp_path / "out")
    config = load_pipeline(tmp_path / "pipeline.yaml")
    splits = load_data(config.data, 0)
    through_python = autorep_fx.transform(
        load_model(config.model), "5%", data=splits.train, val_data=splits.validation,
        config={"training": {"epochs": 1}, "finetune": {"epochs": 1}}, device="cpu",
    )  # fmt: skip
    assert through_file.plan.digest == through_python.plan.digest
    written = yaml.safe_load((tmp_path / "out" / "pipeline.yaml").read_text())
    assert written["training"]["epochs"] == 1
    assert written["budget"] == {"fraction": 0.05}
    assert written["polynomials"]["degree"] == 2


class _Rows(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        for _, value in attrs:
            assert "http" not in (value or "")


def test_the_report_parses_and_names_every_site(demo: tuple[Path, str]) -> None:
    """One file, no external address, a row per site."""
    text = (demo[0] / "budget-1" / "report.html").read_text()
    parser = _Rows()
    parser.feed(text)
    assert parser.rows >= 7
    for site in ("relu1", "layer1.0.relu1", "layer3.0.relu2"):
        assert site in text
