"""The training loop: phases of epochs of steps, on any device, saved and resumed at any step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autorep_fx.config import CheckpointConfig
from autorep_fx.errors import StoppedError
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.averaging import Average
from autorep_fx.training.batches import count_batches, set_epoch
from autorep_fx.training.checkpoint import Checkpoint, latest, load_checkpoint, save_checkpoint
from autorep_fx.training.collective import any_of, broadcast_together
from autorep_fx.training.environment import deterministic_algorithms
from autorep_fx.training.evaluation import evaluate
from autorep_fx.training.health import LOOK_EVERY, check_loss
from autorep_fx.training.history import Callback
from autorep_fx.training.objective import Objective
from autorep_fx.training.phases import Phase
from autorep_fx.training.record import RunRecord
from autorep_fx.training.resumable import Resumable, generator_states, set_generator_states
from autorep_fx.training.signals import StopRequest
from autorep_fx.training.stepper import Stepper

__all__ = ["Loop", "Saved"]

logger = logging.getLogger(__name__)

_POINTS_PER_PHASE = 50


@dataclass(frozen=True)
class Saved:
    """Where and how a run is saved.

    Attributes:
        folder: Folder of the checkpoints; None to keep none.
        identity: Digest of all that the run depends on.
        options: When to save, and how many stay.
        notes: Called for what else belongs to the run, as JSON.
    """

    folder: Path | None
    identity: str
    options: CheckpointConfig
    notes: Callable[[], Mapping[str, Any]] = dict


@dataclass
class _Place:
    """Where a run is: the phase, its number, finished epochs, and batches used in the present one."""

    phase: Phase
    number: int
    epoch: int
    batch: int
    average: Average | None
    stop: StopRequest


class Loop:
    """Runs phases one after the other.

    Args:
        fabric: Lightning Fabric.
        phases: All phases, in order; each is run by :meth:`run` when its turn comes.
        stepper: Makes an optimiser step of batches.
        objective: For the metric.
        data: Re-iterable training batches.
        val_data: Validation batches, or None.
        seed: Of everything random; the caller's generators are left alone.
        saved: Checkpoints.
        callbacks: Called with every logged point, in the first process.
    """

    def __init__(
        self, fabric: Any, phases: Sequence[Phase], *, stepper: Stepper, objective: Objective, data: Iterable[Any],
        val_data: Iterable[Any] | None, seed: int, saved: Saved, callbacks: Sequence[Callback] = (),
    ) -> None:  # fmt: skip
        self.fabric, self.phases, self.stepper, self.objective = fabric, tuple(phases), stepper, objective
        self.data, self.val_data, self.seed, self.saved = data, val_data, seed, saved
        self.source = Resumable(data, count_batches(data, "data"))
        self.steps_per_epoch = math.ceil(self.source.total / stepper.accumulate)
        self.record = RunRecord(callbacks if fabric.is_global_zero else ())
        self.resumed: Checkpoint | None = None
        self._saved_at = time.monotonic()

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all phases."""
        return self.steps_per_epoch * sum(phase.epochs for phase in self.phases)

    def resume(self) -> Checkpoint | None:
        """Take up the last checkpoint; the model of the phase that was reached gets its state.

        Raises:
            CheckpointError: All are damaged, or the last is of another run.
        """
        found = None if self.saved.folder is None else load_checkpoint(self.saved.folder, self.saved.identity)
        if found is None:
            return None
        name, epoch, batch = (found.progress[key] for key in ("phase", "epoch", "batch"))
        phase = next(phase for phase in self.phases if phase.name == name)
        phase.module.load_state_dict(dict(found.model))
        self.record.load(found.progress, found.best)
        self.resumed = found
        logger.info("resumed in phase %s after %d epochs and %d batches", name, epoch, batch)
        if not self.source.can_resume:
            logger.warning(
                "the data cannot be taken up inside an epoch: training goes on from the end of epoch %d", epoch
            )
        return found

    def run(self, phase: Phase) -> None:
        """Run one phase; one that a resumed run has behind it is skipped.

        Raises:
            NonFiniteError: The loss is NaN, infinite or explodes.
            StoppedError: The process was asked to stop; the state is saved.
        """
        number = self.phases.index(phase)
        reached = -1
        if self.resumed is not None:
            reached = [each.name for each in self.phases].index(self.resumed.progress["phase"])
        if reached > number:
            return
        self.stepper.begin(phase)
        with StopRequest() as stop, deterministic_algorithms(self.stepper.execution.deterministic):
            place = _Place(phase, number, 0, 0, Average(phase.module, phase.ema) if phase.ema else None, stop)
            if reached == number:
                self._go_to(place)
            while place.epoch < phase.epochs:
                self._epoch(place)
        self.stepper.end()
        if phase.selects and self.record.best:
            phase.module.load_state_dict(self.record.best)
        elif place.average is not None:
            phase.module.load_state_dict(place.average.module.state_dict())
        phase.module.eval()

    def _go_to(self, place: _Place) -> None:
        assert self.resumed is not None
        place.epoch, place.batch = self.resumed.progress["epoch"], self.resumed.progress["batch"]
        self.stepper.load(self.resumed.loop)
        if place.average is not None and self.resumed.averaged:
            place.average.load(self.resumed.averaged)

    def _epoch(self, place: _Place) -> None:
        place.phase.module.train()
        set_epoch(self.data, place.epoch + sum(each.epochs for each in self.phases[: place.number]))
        # Every epoch has a generator state of its own, so that a resumed run draws the same numbers.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1_000_003 + place.epoch + 500_009 * place.number)
            if place.batch and self.resumed is not None:
                batches = self.source.batches(place.batch, self.resumed.loop["data"])
                set_generator_states(self.resumed.loop["generators"])
            else:
                batches = self.source.batches()
                if self.fabric.global_rank:  # noise of its own; the order of the data is the same for all
                    torch.manual_seed(torch.initial_seed() + 7_919 * self.fabric.global_rank)
            for done, group in self.source.grouped(batches, place.batch, self.stepper.accumulate):
                place.batch = done
                self._step(place, group)
        metric = self._measure(place)
        place.epoch, place.batch = place.epoch + 1, 0
        self._log(place, metric)
        self._save(place)
        self._stop_if_asked(place)

    def _steps(self, place: _Place) -> int:
        """Optimiser steps done in the phase."""
        return self.steps_per_epoch * place.epoch + math.ceil(place.batch / self.stepper.accumulate)

    def _step(self, place: _Place, group: Sequence[Any]) -> None:
        phase, step = place.phase, self._steps(place)
        total, last = self.steps_per_epoch * phase.epochs, place.batch == self.source.total
        looks = last or self.fabric.device.type == "cpu" or step % LOOK_EVERY == 0
        when = f"{phase.name}, {step / total:.0%} of its steps"
        parts = (self.record, phase.module, self.objective, when, self.saved.folder)
        check = partial(check_loss, *parts) if looks else None
        self.record.add(self.stepper.step(group, (step - 1) / total, check=check))
        phase.after_step(step / total)
        broadcast_together(phase.shared())
        if place.average is not None:
            place.average.update(phase.module)
        if last:
            return  # the end of the epoch logs and saves
        if step % max(1, total // _POINTS_PER_PHASE) == 0:
            self._log(place, None)
        if self._save_is_due(step) and self.source.can_resume:
            self._save(place)
        self._stop_if_asked(place)

    def _measure(self, place: _Place) -> float | None:
        """The metric after an epoch; the same in all processes."""
        broadcast_together(place.phase.module.buffers())
        candidate = place.phase.module if place.average is None else place.average.module
        with torch.random.fork_rng(), self.stepper.context():
            torch.manual_seed(self.seed)
            place.phase.before_metric(candidate, self._inputs())
        if self.val_data is None:
            return None
        metric = evaluate(candidate, self.val_data, self.objective, device=self.fabric.device)
        if metric is None:
            return None
        metric = float(self.fabric.broadcast(metric))
        if not math.isfinite(metric):
            logger.warning("the metric is %s after epoch %d: it is not considered", metric, place.epoch + 1)
            return None
        if place.phase.selects:
            self.record.consider(metric, candidate)
        return metric

    def _inputs(self) -> Iterator[ExampleInputs]:
        """This process's training inputs of an epoch."""
        for batch in self.source.batches():
            yield self.stepper.inputs(batch)

    def _log(self, place: _Place, metric: float | None) -> None:
        step = self._before(place) + self._steps(place)
        self.record.log(place.phase.name, step, self.total_steps, place.epoch, place.phase.counts(), metric)

    def _before(self, place: _Place) -> int:
        return self.steps_per_epoch * sum(each.epochs for each in self.phases[: place.number])

    def _save_is_due(self, step: int) -> bool:
        options = self.saved.options
        if options.every_steps is not None and step % options.every_steps == 0:
            return True
        return options.every_minutes is not None and time.monotonic() - self._saved_at > 60 * options.every_minutes

    def _stop_if_asked(self, place: _Place) -> None:
        """Stop as a signal asked, with the state saved.

        Raises:
            StoppedError: It did.
        """
        if not any_of(place.stop.requested, self.fabric.device):
            return
        lost = ""
        if place.batch and self.source.can_resume:
            self._save(place)
        elif place.batch:
            lost = " The data cannot be taken up inside an epoch: it goes on from the end of the last one."
        self.fabric.barrier()  # the first process may still be writing
        good = latest(self.saved.folder)
        if good is not None:
            fix = f"Go on from {good} with resume=True, or --resume on the command line."
        elif self.saved.folder is not None:
            fix = "Nothing was saved before the end of the first epoch: start again."
        else:
            fix = "Pass out_dir= to be able to resume."
        raise StoppedError("Training was asked to stop, and stopped." + lost, received="SIGTERM", fix=fix)

    def _save(self, place: _Place) -> None:
        self._saved_at = time.monotonic()
        if self.saved.folder is None or not self.fabric.is_global_zero:
            return
        where = {"phase": place.phase.name, "epoch": place.epoch, "batch": place.batch}
        loop = {
            **self.stepper.state(), "generators": generator_states(),
            "data": self.source.state() if place.batch else None,
        }  # fmt: skip
        averaged = {} if place.average is None else place.average.state()
        state = Checkpoint(
            {**where, **self.record.to_json(), **self.saved.notes()}, place.phase.module.state_dict(),
            self.record.best, averaged, loop, self.saved.identity,
        )  # fmt: skip
        step = self._before(place) + self._steps(place)
        save_checkpoint(self.saved.folder, state, step=step, keep=self.saved.options.keep)
