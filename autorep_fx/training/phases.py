"""The phases of a training: what each optimises, and what follows an optimiser step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep_fx.config import BaseConfig, TransformConfig
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.norm_statistics import measure_norms
from autorep_fx.training.objective import Objective, kd_loss
from autorep_fx.training.range_penalty import WatchedRanges
from autorep_fx.training.teacher import SiteTeacher, WatchedSites, feature_loss

__all__ = ["BaseTraining", "Finetuning", "GateTraining", "Phase"]

_FINAL_LR = 0.01  # share of the learning rate that the cosine ends at, as AutoReP's 1e-3 → 1e-5
_MOMENTUM = 0.9


class Phase:
    """One phase of a training.

    Attributes:
        name: Its name in logs and checkpoints.
        module: What is trained, and saved.
        epochs: Epochs.
        warmup: Share of the steps in which the learning rate rises.
        final_lr: Share of the learning rate that the cosine ends at.
        clip: Largest norm of the gradient.
        ema: Decay per step of the averaged weights; 0 for none.
        selects: Whether the best epoch on the validation data is what remains.
    """

    name: str
    module: nn.Module
    epochs: int
    warmup: float = 0.0
    final_lr: float = _FINAL_LR
    clip: float = 1.0
    ema: float = 0.0
    selects: bool = False

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser."""
        raise NotImplementedError

    def loss(self, model: nn.Module, inputs: ExampleInputs, targets: Any) -> Tensor:
        """The loss of a batch; ``model`` computes what ``module`` does."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step with the share of the phase that is done."""

    def before_metric(self, candidate: nn.Module, batches: Iterable[ExampleInputs]) -> None:
        """Called after every epoch with what is to be evaluated and kept, and training inputs."""

    def shared(self) -> Iterable[Tensor]:
        """Tensors that all processes must agree on after a step."""
        return ()

    def counts(self) -> tuple[int, int]:
        """Comparisons kept now, and allowed."""
        return 0, 0


class _Gated(Phase):
    """Task loss and distillation of a gated model."""

    def __init__(self, model: GatedModel, teacher: nn.Module, config: TransformConfig, objective: Objective) -> None:
        self.module = self.model = model
        self.teacher, self.config, self.objective = teacher, config, objective
        self.clip = config.training.clip

    def loss(self, model: nn.Module, inputs: ExampleInputs, targets: Any) -> Tensor:
        """Task loss, the distances to the untouched model's outputs and sites, and the range penalty."""
        options = self.config.training
        features = isinstance(self.teacher, SiteTeacher)
        watched, ranged = (self.model.gates if wanted else {} for wanted in (features, options.range_penalty))
        with WatchedSites(watched) as sites, WatchedRanges(ranged) as ranges:
            outputs = self.objective.run(model, inputs)
            result = self.objective.task_loss(outputs, targets)
            if options.distillation or options.features:
                with torch.no_grad():
                    reference = self.objective.run(self.teacher, inputs)
                logits = self.objective.loss is None
                result = result + options.distillation * kd_loss(outputs, reference, options.temperature, logits=logits)
            if isinstance(self.teacher, SiteTeacher):
                result = result + options.features * feature_loss(sites.outputs, self.teacher.outputs)
            for excess in ranges.excess.values():
                result = result + options.range_penalty * excess
        return result

    def counts(self) -> tuple[int, int]:
        """Comparisons kept now, and allowed."""
        return self.model.kept, self.model.allowance.allowed


class GateTraining(_Gated):
    """Gates, polynomials and weights together, as the method says."""

    name = "train_gates"

    def __init__(self, model: GatedModel, teacher: nn.Module, config: TransformConfig, objective: Objective) -> None:
        super().__init__(model, teacher, config, objective)
        self.epochs = config.training.epochs if config.has_stage(self.name) else 0
        self.warmup, self.final_lr = config.training.warmup, config.training.final_lr

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam for weights, polynomials and scores."""
        options = self.config.training
        groups = self.model.parameter_groups(lr=options.lr, gate_lr=options.gate_lr, weight_decay=options.weight_decay)
        return torch.optim.AdamW([group for group in groups if group["params"]])

    def loss(self, model: nn.Module, inputs: ExampleInputs, targets: Any) -> Tensor:
        """The same, and the method's penalty."""
        result = super().loss(model, inputs, targets)
        weight = self.config.training.penalty
        return result + weight * self.model.budget_penalty() if weight else result

    def after_step(self, progress: float) -> None:
        """Move fits and gates."""
        self.model.step(progress)

    def shared(self) -> Iterable[Tensor]:
        """States, scores and fits of the gates."""
        for gate in self.model.gates.values():
            yield from (gate.kept, gate.score, gate.raw_coefficients)


class Finetuning(_Gated):
    """Weights and polynomials, with the gates frozen."""

    name = "finetune"
    selects = True

    def __init__(self, model: GatedModel, teacher: nn.Module, config: TransformConfig, objective: Objective) -> None:
        super().__init__(model, teacher, config, objective)
        self.epochs = config.finetune.epochs if config.has_stage(self.name) else 0
        self.warmup, self.ema = config.finetune.warmup, config.finetune.ema

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh one: the moments of the gate training belong to another network."""
        options = self.config.finetune
        decay = self.config.training.weight_decay
        groups = self.model.parameter_groups(lr=options.lr, gate_lr=1.0, weight_decay=decay)
        groups = [group for group in groups if group["params"] and group["name"] != "scores"]
        if options.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=_MOMENTUM)
        return torch.optim.AdamW(groups)

    def before_metric(self, candidate: nn.Module, batches: Iterable[ExampleInputs]) -> None:
        """Measure the statistics of batch norms anew, which training has only followed."""
        assert isinstance(candidate, GatedModel)
        batches = itertools.islice(batches, self.config.finetune.norm_batches)
        measure_norms(candidate.network, batches, lambda inputs: self.objective.run(candidate, inputs))


class BaseTraining(Phase):
    """A plain model on its task."""

    name = "base"
    selects = True
    final_lr = 0.0
    clip = 5.0  # far above what a healthy step has

    def __init__(self, model: nn.Module, config: BaseConfig, objective: Objective) -> None:
        self.module, self.config, self.objective = model, config, objective
        self.epochs, self.warmup, self.ema = config.epochs, config.warmup, config.ema

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum, or AdamW; only matrices and kernels are decayed."""
        options = self.config
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if options.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=options.lr, momentum=_MOMENTUM, nesterov=True)
        return torch.optim.AdamW(groups, lr=options.lr)

    def loss(self, model: nn.Module, inputs: ExampleInputs, targets: Any) -> Tensor:
        """The task's loss; smoothed labels where it is cross-entropy."""
        outputs = self.objective.run(model, inputs)
        result = self.objective.task_loss(outputs, targets)
        share = self.config.label_smoothing
        if share and self.objective.loss is None:
            uniform = -F.log_softmax(outputs, dim=1).mean()
            result = (1 - share) * result + share * uniform
        return result
