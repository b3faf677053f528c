"""Progress bars of training on a terminal; silent anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from autorep_fx.training.history import Callback
from autorep_fx.training.history import Progress as Point

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """Bars with loss, accuracy, kept comparisons and the time left, one per training run."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(), TextColumn("{task.fields[state]}"),
            console=console, disable=not console.is_terminal, transient=False,
        )  # fmt: skip

    def __enter__(self) -> Self:
        """Start to show."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to show."""
        self._bars.stop()

    def task(self, name: str) -> Callable[[int, int], None]:
        """A bar that is moved by calls with steps done and steps in total."""
        task: TaskID | None = None

        def update(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = self._bars.add_task(name, total=total, state="")
            self._bars.update(task, completed=done, total=total)

        return update

    def callbacks(self, name: str) -> tuple[Callback, ...]:
        """Callbacks for :func:`autorep_fx.transform` that move a bar of their own."""
        tasks: dict[bool, TaskID] = {}  # one for the ReLU model, if it is trained too
        metric = ""

        def update(point: Point) -> None:
            nonlocal metric
            base = point.phase == "base"
            if base not in tasks:
                metric = ""
                tasks[base] = self._bars.add_task("ReLU model" if base else name, total=point.steps, state="")
            task = tasks[base]
            if point.metric is not None:
                metric = f" metric {point.metric:.4f}"
            state = f"loss {point.loss:.3f}{metric}"
            if not base:
                state += f" kept {point.kept:,} / {point.allowed:,}"
            if point.step == point.steps and not base:
                state += ", compiling and exporting"
            self._bars.update(task, completed=point.step, state=state)

        return (update,)
