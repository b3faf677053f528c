"""What a run remembers of itself: logged points, losses since the last one, the best epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autorep_fx.training.history import Callback, Progress

__all__ = ["RunRecord"]


class RunRecord:
    """The record of a run, part of its checkpoints.

    Args:
        callbacks: Called with every logged point.

    Attributes:
        history: Logged points.
        losses: Losses of the steps since the last point.
        first_loss: Loss of the first step; NaN before it.
        best: State of the best epoch so far; empty before one was measured.
        best_metric: Its metric.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)
        self.history: list[Progress] = []
        self.losses: list[Tensor] = []
        self.first_loss = math.nan
        self.best: dict[str, Tensor] = {}
        self.best_metric = -math.inf

    def add(self, loss: Tensor) -> None:
        """Remember the loss of a step."""
        self.losses.append(loss)

    def log(self, phase: str, step: int, steps: int, epoch: int, counts: tuple[int, int], metric: float | None) -> None:
        """Log a point with the mean loss since the last one; all as in :class:`Progress`."""
        # Those of a resumed run came from a file; they take device and dtype of the last.
        loss = (
            float(torch.stack([loss.to(self.losses[-1]) for loss in self.losses]).mean()) if self.losses else math.nan
        )
        self.losses.clear()
        point = Progress(phase, step, steps, epoch, loss, *counts, metric)
        self.history.append(point)
        for callback in self.callbacks:
            callback(point)

    def consider(self, metric: float, module: nn.Module) -> None:
        """Keep the state of ``module`` if none was better; of equal ones the last."""
        if metric >= self.best_metric:
            self.best_metric = metric
            self.best = copy.deepcopy(module.state_dict())

    def to_json(self) -> dict[str, Any]:
        """Everything but the best state."""
        return {
            "history": [point.to_json() for point in self.history],
            "losses": [float(loss) for loss in self.losses],
            "first_loss": self.first_loss if math.isfinite(self.first_loss) else None,
            "best_metric": self.best_metric if math.isfinite(self.best_metric) else None,
        }

    def load(self, state: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`to_json` gave, and the best state."""
        self.history = [Progress(**point) for point in state["history"]]
        self.losses = [torch.tensor(loss, dtype=torch.float64) for loss in state["losses"]]
        self.first_loss = math.nan if state["first_loss"] is None else state["first_loss"]
        self.best_metric = -math.inf if state["best_metric"] is None else state["best_metric"]
        self.best = dict(best)
