"""Logs of a training beside its results: CSV and JSON lines always, TensorBoard where it is asked for."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from autorep_fx.errors import ConfigError
from autorep_fx.training.history import Progress

__all__ = ["TrainingLog"]

_COLUMNS = (*(field.name for field in fields(Progress)), "seconds")


class TrainingLog:
    """A callback that writes every point to ``NAME.csv`` and ``NAME.jsonl``.

    ``seconds`` is the time since this process began to train; empty for points of an earlier process.

    Args:
        folder: Where to write.
        name: Of the files.
        tensorboard: Also write event files, to ``tensorboard/``.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, name: str = "training", *, tensorboard: bool = False) -> None:
        self._csv, self._lines = folder / f"{name}.csv", folder / f"{name}.jsonl"
        self._begin = time.monotonic()
        self._writer = _summary_writer(folder / "tensorboard") if tensorboard else None
        self.restart(())

    def restart(self, history: Sequence[Progress]) -> None:
        """Begin the files anew with the points of a run that is taken up."""
        with self._csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(_COLUMNS)
        self._lines.write_text("", encoding="utf-8")
        for point in history:
            self._write(point, None)

    def __call__(self, point: Progress) -> None:
        """Write a point."""
        self._write(point, round(time.monotonic() - self._begin, 1))
        if self._writer is not None:
            values = {"loss": point.loss, "kept": point.kept, "metric": point.metric}
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(f"{point.phase}/{name}", value, point.step)
            self._writer.flush()

    def _write(self, point: Progress, seconds: float | None) -> None:
        row = {**point.to_json(), "seconds": seconds}
        with self._csv.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, _COLUMNS).writerow(row)
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed.", received=str(error), fix="Run: pip install autorep-fx[tensorboard]"
        ) from error
    return SummaryWriter(str(folder))
