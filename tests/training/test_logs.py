"""Logs: the points of the history, in three forms."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import autorep_fx
from autorep_fx.errors import ConfigError
from autorep_fx.training.history import Progress
from autorep_fx.training.logs import TrainingLog
from autorep_fx.training.record import RunRecord
from nets import batches, seeded, trained_norms

CONFIG: dict[str, Any] = {
    "training": {"epochs": 2}, "finetune": {"epochs": 1}, "checkpoints": {"every_steps": 1},
    "outputs": {"onnx": False, "report": False},
}  # fmt: skip


def _run(folder: Path, **options: Any) -> autorep_fx.Compiled:
    model = trained_norms(seeded(), batches()[0][0])
    return autorep_fx.transform(
        model, "10%", data=batches(), val_data=batches(1, seed=1), config=CONFIG, out_dir=folder, **options
    )


def _assert_logged(folder: Path, history: Any) -> list[dict[str, Any]]:
    """Both files hold the points of the history; returns the rows of the JSON lines."""
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    with (folder / "training.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [Progress(**{k: v for k, v in row.items() if k != "seconds"}) for row in rows] == list(history)
    as_text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    assert table == as_text
    return rows


def test_both_files_hold_the_history(tmp_path: Path) -> None:
    """Every point with the seconds since the start; the run's conditions lie beside them."""
    compiled = _run(tmp_path)
    seconds = [row["seconds"] for row in _assert_logged(tmp_path, compiled.history)]
    assert len(seconds) == 12
    assert seconds == sorted(seconds)
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["seed"] == 0
    assert described["packages"]["torch"]
    assert described["execution"]["precision"] == "32"


class _KilledError(Exception):
    pass


def test_a_resumed_run_repeats_no_point(tmp_path: Path) -> None:
    """Also none that was logged after the last checkpoint; points of the earlier process have no seconds."""

    def kill(point: Progress) -> None:
        if point.step == 7:
            raise _KilledError

    with pytest.raises(_KilledError):
        _run(tmp_path, callbacks=[kill])
    rows = _assert_logged(tmp_path, _run(tmp_path, resume=True).history)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["seconds"] is None for row in rows] == [True] * 6 + [False] * 6


def test_losses_of_a_resumed_run_join_those_of_now() -> None:
    """They come from JSON, in float64 on the CPU; those of now may be elsewhere."""
    before = RunRecord()
    before.add(torch.tensor(1 / 3))
    state = json.loads(json.dumps(before.to_json()))
    for dtype in (torch.float32, torch.float64):
        record = RunRecord()
        record.load(state, {})
        record.add(torch.tensor(2 / 3, dtype=dtype))
        record.log("base", 1, 1, 0, (0, 0), None)
        assert record.history[-1].loss == pytest.approx(0.5, rel=1e-7)


def test_tensorboard_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install autorep-fx\[tensorboard\]"):
        TrainingLog(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_same_points(tmp_path: Path) -> None:
    """Loss, kept comparisons and metric, by phase."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    log = TrainingLog(tmp_path, tensorboard=True)
    log(Progress("finetune", 3, 4, 1, 0.5, 10, 12, 0.75))
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
