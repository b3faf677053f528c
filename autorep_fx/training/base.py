"""Training of a plain model: the ReLU network that a pipeline starts from when it has no checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autorep_fx.config import BaseConfig, CheckpointConfig, ExecutionConfig
from autorep_fx.training.fabric import make_fabric
from autorep_fx.training.history import Callback, Progress
from autorep_fx.training.logs import TrainingLog
from autorep_fx.training.loop import Loop, Saved
from autorep_fx.training.objective import Objective
from autorep_fx.training.phases import BaseTraining
from autorep_fx.training.stepper import Stepper
from autorep_fx.training.trainer import digest_of

__all__ = ["base_identity", "train_base"]


def base_identity(model: nn.Module, config: BaseConfig, seed: int) -> str:
    """Digest of what the training of a ReLU model depends on: first weights, recipe, seed."""
    return digest_of(model, config.model_dump_json(), str(seed))


def train_base(
    model: nn.Module, config: BaseConfig, *, objective: Objective, data: Iterable[Any],
    val_data: Iterable[Any] | None = None, execution: ExecutionConfig | None = None,
    checkpoints: CheckpointConfig | None = None, device: str = "cpu", seed: int = 0,
    callbacks: Sequence[Callback] = (), checkpoint: Path | None = None, resume: bool = False,
    log: TrainingLog | None = None,
) -> list[Progress]:  # fmt: skip
    """Train ``model`` in place, and leave it in eval mode with its best epoch on the validation data.

    Args:
        model: The model.
        config: Epochs, optimiser and schedule.
        objective: Task loss and metric.
        data: Re-iterable training batches.
        val_data: Validation batches: they select the epoch to keep.
        execution: Precision and the like.
        checkpoints: When the state is saved.
        device: ``cpu`` or ``cuda``.
        seed: Seed of everything random; the caller's generators are left alone.
        callbacks: Called with every logged point.
        checkpoint: Folder of the checkpoints; None to keep none.
        resume: Go on from the last checkpoint, if there is one.
        log: Where the points are written.

    Returns:
        The logged points.

    Raises:
        NonFiniteError: The loss is NaN, infinite or explodes.
        CheckpointError: The checkpoint is damaged or of another run.
        StoppedError: The process was asked to stop; the state is saved.
    """
    execution = execution or ExecutionConfig()
    fabric = make_fabric(device, execution)
    phase = BaseTraining(model, config, objective)
    saved = Saved(checkpoint, base_identity(model, config, seed), checkpoints or CheckpointConfig())
    loop = Loop(
        fabric, [phase], stepper=Stepper(fabric, execution), objective=objective, data=data, val_data=val_data,
        seed=seed, saved=saved, callbacks=callbacks if log is None else (*callbacks, log),
    )  # fmt: skip
    if resume and loop.resume() is not None and log is not None:
        log.restart(loop.record.history)
    loop.run(phase)
    return loop.record.history
