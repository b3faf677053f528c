"""The record of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Callback", "Progress"]


@dataclass(frozen=True)
class Progress:
    """One logged point.

    Attributes:
        phase: ``train_gates`` or ``finetune``.
        step: Optimiser steps since the start, over all phases.
        steps: Optimiser steps of all phases together.
        epoch: Epochs done in this phase.
        loss: Mean loss since the last point.
        kept: Gateable comparisons kept.
        allowed: Gateable comparisons that the budget allows.
        metric: Metric on the validation data; None where it was not evaluated.
    """

    phase: str
    step: int
    steps: int
    epoch: int
    loss: float
    kept: int
    allowed: int
    metric: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return asdict(self)


#: Called with every logged point.
Callback = Callable[[Progress], None]
