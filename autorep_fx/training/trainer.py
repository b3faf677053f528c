"""The gate trainer: a gated model, its teacher and data, through gate training and fine-tuning."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autorep_fx.config import TransformConfig
from autorep_fx.training.batches import count_batches
from autorep_fx.training.fabric import make_fabric
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.history import Callback, Progress
from autorep_fx.training.loop import Loop, Saved
from autorep_fx.training.objective import Objective
from autorep_fx.training.phases import Finetuning, GateTraining
from autorep_fx.training.stepper import Stepper, move
from autorep_fx.training.teacher import SiteTeacher

__all__ = ["GateTrainer", "digest_of", "run_identity"]

logger = logging.getLogger(__name__)


class GateTrainer:
    """Trains a gated model in two phases, before and after projection.

    Args:
        model: The gated model, calibrated.
        teacher: The untouched model, for distillation; only read.
        config: Settings.
        objective: Task loss and metric.
        data: Re-iterable training batches.
        val_data: Validation batches: they select the epoch to keep and are reported, nothing is trained on them.
        device: ``cpu`` or ``cuda``.
        seed: Seed of everything random; the caller's generators are left alone.
        callbacks: Called with every logged point.
        checkpoint: Folder of the checkpoints; None to keep none.
    """

    def __init__(
        self, model: GatedModel, teacher: nn.Module, config: TransformConfig, *, objective: Objective,
        data: Iterable[Any], val_data: Iterable[Any] | None = None, device: str = "cpu", seed: int = 0,
        callbacks: Sequence[Callback] = (), checkpoint: Path | None = None,
    ) -> None:  # fmt: skip
        self.model, self.config, self.data = model, config, data
        self.fabric = make_fabric(device, config.execution)
        identity = run_identity(teacher, config, seed, data, model.allowance)
        untouched = SiteTeacher(model) if config.training.features else teacher
        watched = move(untouched.eval(), self.fabric, config.execution)
        self.phases = tuple(kind(model, watched, config, objective) for kind in (GateTraining, Finetuning))
        stepper = Stepper(self.fabric, config.execution)
        self.loop = Loop(
            self.fabric, self.phases, stepper=stepper, objective=objective, data=data, val_data=val_data, seed=seed,
            saved=Saved(checkpoint, identity, config.checkpoints, self._notes), callbacks=callbacks,
        )  # fmt: skip
        stepper.steps = self.loop.total_steps

    @property
    def history(self) -> list[Progress]:
        """Logged points so far."""
        return self.loop.record.history

    def resume(self) -> bool:
        """Take up the last checkpoint, if there is one; returns whether there was.

        Raises:
            CheckpointError: It is damaged or of another run.
        """
        found = self.loop.resume()
        if found is None:
            return False
        self.model.take_sample(self.data)
        self.model.fallbacks = dict(found.progress["fallbacks"])
        self.model.calibrated_on = found.progress["calibrated_on"]
        return True

    def _notes(self) -> Mapping[str, Any]:
        return {"fallbacks": self.model.fallbacks, "calibrated_on": self.model.calibrated_on}

    def train_gates(self) -> None:
        """Train gates, polynomials and weights together; the kept comparisons go to the budget as the method says."""
        self.loop.run(self.phases[0])

    def finetune(self) -> None:
        """Train weights and polynomials with the gates frozen; keeps the best epoch on the validation data."""
        self.loop.run(self.phases[1])


# What a run may be resumed with otherwise than it began.
_APART = {"checkpoints", "outputs"}


def run_identity(model: nn.Module, config: TransformConfig, seed: int, data: Iterable[Any] | None, *more: Any) -> str:
    """Digest of what a run depends on: a run may only take up what one of the same digest has left.

    Args:
        model: The untouched model.
        config: Settings, of which those that the result does not depend on are left out.
        seed: Seed.
        data: Training batches, of which the number counts; None for none.
        *more: What else matters, such as the budget; by its text.
    """
    batches = 0 if data is None else count_batches(data, "data")
    return digest_of(model, *map(str, (config.model_dump_json(exclude=_APART), seed, batches, *more)))


def digest_of(model: nn.Module, *parts: str) -> str:
    """Digest of a model's weights and of what else a run depends on."""
    digest = hashlib.sha256("|".join(parts).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
