"""The gate trainer, on Lightning Fabric: task loss, distillation from the untouched model, budget penalty."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.config import TransformConfig
from autorep_fx.errors import NonFiniteError
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.batches import count_batches, set_epoch, split_batch
from autorep_fx.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from autorep_fx.training.evaluation import evaluate
from autorep_fx.training.fabric import make_fabric
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.history import Callback, Progress
from autorep_fx.training.objective import Objective, kd_loss
from autorep_fx.training.schedule import cosine

__all__ = ["GateTrainer"]

logger = logging.getLogger(__name__)

_FINAL_LR = 0.01  # share of the learning rate that the cosine ends at, as AutoReP's 1e-3 → 1e-5
_POINTS_PER_PHASE = 50


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
        checkpoint: Folder of the checkpoint; None to keep none.
    """

    def __init__(
        self, model: GatedModel, teacher: nn.Module, config: TransformConfig, *, objective: Objective,
        data: Iterable[Any], val_data: Iterable[Any] | None = None, device: str = "cpu", seed: int = 0,
        callbacks: Sequence[Callback] = (), checkpoint: Path | None = None,
    ) -> None:  # fmt: skip
        self.model, self.teacher, self.config, self.objective = model, teacher, config, objective
        self.data, self.val_data, self.seed = data, val_data, seed
        self.callbacks, self.checkpoint = tuple(callbacks), checkpoint
        self.fabric = make_fabric(device)
        self.history: list[Progress] = []
        self.batches = count_batches(data, "data")
        self._epochs = {"train_gates": config.training.epochs, "finetune": config.finetune.epochs}
        for phase in self._epochs:
            if not config.has_stage(phase):
                self._epochs[phase] = 0
        self._best: dict[str, Tensor] = {}
        self._best_metric = -math.inf
        self._resumed: Checkpoint | None = None

    @property
    def total_steps(self) -> int:
        """Optimiser steps of both phases."""
        return self.batches * sum(self._epochs.values())

    def resume(self) -> bool:
        """Take up the last checkpoint, if there is one; returns whether there was.

        Raises:
            CheckpointError: It is damaged or of another run.
        """
        if self.checkpoint is None:
            return False
        found = load_checkpoint(self.checkpoint, self.identity)
        if found is None:
            return False
        self.model.load_state_dict(found.model)
        self.model.take_sample(self.data)
        self._best, self._resumed = dict(found.best), found
        best = found.progress["best_metric"]
        self._best_metric = -math.inf if best is None else best
        self.history = [Progress(**point) for point in found.progress["history"]]
        self.model.fallbacks = dict(found.progress["fallbacks"])
        self.model.calibrated_on = found.progress["calibrated_on"]
        logger.info("resumed at %s, epoch %d", found.progress["phase"], found.progress["epoch"])
        return True

    @property
    def identity(self) -> str:
        """Digest of the untouched weights, the budget, the settings and the seed."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        digest.update(f"{self.model.allowance}|{self.seed}|{self.batches}".encode())
        for name, value in self.teacher.state_dict().items():
            digest.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()

    def train_gates(self) -> None:
        """Train gates, polynomials and weights together; the kept comparisons follow the schedule."""
        self._phase("train_gates", self.config.training.lr)

    def finetune(self) -> None:
        """Train weights and polynomials with the gates frozen; keeps the best epoch on the validation data."""
        self._phase("finetune", self.config.finetune.lr)
        if self._best:
            self.model.load_state_dict(self._best)

    def _phase(self, phase: str, lr: float) -> None:
        epochs, start = self._epochs[phase], 0
        if self._resumed is not None:
            reached, epoch = self._resumed.progress["phase"], self._resumed.progress["epoch"]
            if reached == "finetune" and phase == "train_gates":
                return
            start = epoch if reached == phase else 0
        model = self.fabric.to_device(self.model)
        self.teacher = self.fabric.to_device(self.teacher).eval()
        optimizer = self._optimizer(lr, phase)
        if start and self._resumed is not None:
            optimizer.load_state_dict(dict(self._resumed.optimizer))
        for epoch in range(start, epochs):
            set_epoch(self.data, epoch + (self._epochs["train_gates"] if phase == "finetune" else 0))
            self._epoch(phase, epoch, epochs, optimizer, lr)
            self._end_epoch(phase, epoch + 1, optimizer)
        model.eval()

    def _optimizer(self, lr: float, phase: str) -> torch.optim.Optimizer:
        options = self.config.training
        groups = self.model.parameter_groups(lr=lr, gate_lr=options.gate_lr, weight_decay=options.weight_decay)
        if phase == "finetune":
            groups = [group for group in groups if group["name"] != "scores"]
        for group in groups:
            group["initial_lr"] = group["lr"]
        return torch.optim.AdamW([group for group in groups if group["params"]])

    def _epoch(self, phase: str, epoch: int, epochs: int, optimizer: torch.optim.Optimizer, lr: float) -> None:
        self.model.train()
        total, every = self.batches * epochs, max(1, self.batches * epochs // _POINTS_PER_PHASE)
        losses: list[Tensor] = []
        # Every epoch has a generator state of its own, so that a resumed run draws the same numbers.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1_000_003 + epoch + (500_009 if phase == "finetune" else 0))
            for index, batch in enumerate(self.data):
                step = epoch * self.batches + index
                if index >= self.batches:
                    break
                losses.append(self._train_step(batch, optimizer, step / total, phase))
                if phase == "train_gates":
                    self.model.step((step + 1) / total)
                if (step + 1) % every == 0 and index + 1 < self.batches:
                    self._log(phase, step + 1, epoch, losses)
        metric = self._evaluate()
        self._log(phase, (epoch + 1) * self.batches, epoch + 1, losses, metric)
        if phase == "finetune" and metric is not None and metric >= self._best_metric:
            self._best_metric = metric
            self._best = copy.deepcopy(self.model.state_dict())

    def _train_step(self, batch: Any, optimizer: torch.optim.Optimizer, progress: float, phase: str) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = cosine(progress, group["initial_lr"], group["initial_lr"] * _FINAL_LR)
        options = self.config.training
        inputs, targets = self._on_device(batch)
        optimizer.zero_grad(set_to_none=True)
        outputs = self.objective.run(self.model, inputs)
        loss = self.objective.task_loss(outputs, targets)
        if options.distillation:
            with torch.no_grad():
                reference = self.objective.run(self.teacher, inputs)
            loss = loss + options.distillation * kd_loss(
                outputs, reference, options.temperature, logits=self.objective.loss is None
            )
        if phase == "train_gates" and options.penalty:
            loss = loss + options.penalty * self.model.budget_penalty()
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"The loss is {float(loss.detach())} at {phase}, {progress:.0%} of its steps.",
                received=self._widest_site(),
                fix="Lower training.lr or polynomials.c2_bound, or set the named site's degree to 1. "
                + (f"The last good state is in {self.checkpoint}." if self.checkpoint else ""),
            )
        self.fabric.backward(loss)
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], options.clip)
        optimizer.step()
        return loss.detach()

    def _widest_site(self) -> str:
        widest = max(
            self.model.gates.values(),
            key=lambda gate: float(gate.coefficients.detach().abs().nan_to_num(torch.inf).max()),
        )
        return f"the largest polynomial coefficient is at site {widest.site.name}"

    def _on_device(self, batch: Any) -> tuple[ExampleInputs, Any]:
        inputs, targets = split_batch(batch)
        device = self.fabric.device
        moved = pytree.tree_map_only(Tensor, lambda t: t.to(device), targets)
        return inputs.to(device=device), moved

    def _evaluate(self) -> float | None:
        if self.val_data is None:
            return None
        return evaluate(self.model, self.val_data, self.objective, device=self.fabric.device)

    def _log(self, phase: str, step: int, epoch: int, losses: list[Tensor], metric: float | None = None) -> None:
        before = self.batches * self._epochs["train_gates"] if phase == "finetune" else 0
        loss = float(torch.stack(losses).mean()) if losses else math.nan
        losses.clear()
        point = Progress(
            phase,
            before + step,
            self.total_steps,
            epoch,
            loss,
            self.model.kept,
            self.model.allowance.allowed,
            metric,
        )
        self.history.append(point)
        for callback in self.callbacks:
            callback(point)

    def _end_epoch(self, phase: str, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if self.checkpoint is None:
            return
        progress = {
            "phase": phase, "epoch": epoch, "history": [point.to_json() for point in self.history],
            "best_metric": self._best_metric if math.isfinite(self._best_metric) else None,
            "fallbacks": self.model.fallbacks, "calibrated_on": self.model.calibrated_on,
        }  # fmt: skip
        state = Checkpoint(progress, self.model.state_dict(), self._best, optimizer.state_dict(), self.identity)
        save_checkpoint(self.checkpoint, state)
