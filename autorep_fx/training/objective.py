"""What training minimises: the task's loss, and the distance to the untouched model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.errors import ConfigError, DataError
from autorep_fx.passes.inputs import ExampleInputs

__all__ = ["Objective", "accuracy", "kd_loss"]


def kd_loss(student: Any, teacher: Any, temperature: float = 4.0, *, logits: bool = True) -> Tensor:
    r"""Distillation from the untouched model.

    For a single output of logits ``(N, K)``, K > 1: :math:`T^2 \, KL(\mathrm{softmax}(t/T) \| \mathrm{softmax}(s/T))`,
    averaged over the batch (Hinton et al., arXiv 1503.02531; AutoReP uses T = 4). For anything else: the mean squared
    error over all floating-point outputs, relative to the teacher's mean square.

    Args:
        student: Outputs of the model in training.
        teacher: Outputs of the untouched model for the same inputs.
        temperature: T.
        logits: False takes ``(N, K)`` for plain numbers, as in a regression.
    """
    if logits and isinstance(student, Tensor) and student.dim() == 2 and student.shape[1] > 1:
        log_student = F.log_softmax(student / temperature, dim=1)
        log_teacher = F.log_softmax(teacher / temperature, dim=1)
        return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
    pairs = [
        (s, t)
        for s, t in zip(pytree.tree_leaves(student), pytree.tree_leaves(teacher), strict=True)
        if isinstance(s, Tensor) and s.is_floating_point()
    ]
    losses = [F.mse_loss(s, t) / t.square().mean().clamp(min=1e-12) for s, t in pairs]
    return torch.stack(losses).mean() if losses else torch.zeros(())


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest logit ``(N, K)`` is the target ``(N,)``."""
    return float((outputs.argmax(1) == targets).double().mean())


@dataclass(frozen=True)
class Objective:
    """The task's loss and metric.

    Attributes:
        loss: ``(outputs, targets) -> scalar``; None for cross-entropy where that applies.
        metric: ``(outputs, targets) -> float``, larger is better; None for accuracy where cross-entropy applies.
        forward: ``(module, inputs) -> outputs`` for models that are not simply called with the inputs.
    """

    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Callable[[Any, Any], float] | None = None
    forward: Callable[[Any, Any], Any] | None = None

    def run(self, module: nn.Module, inputs: ExampleInputs) -> Any:
        """The outputs of ``module``, called as the user asked."""
        if self.forward is None:
            return inputs.call(module)
        if inputs.kwargs:
            return self.forward(module, dict(inputs.kwargs))
        return self.forward(module, inputs.args[0] if len(inputs.args) == 1 else inputs.args)

    def task_loss(self, outputs: Any, targets: Any) -> Tensor:
        """The task's loss on a batch.

        Raises:
            DataError: Targets are out of range, or not one per sample.
            ConfigError: The loss is no scalar that depends on the outputs; or none was given and the outputs are not
                logits ``(N, K)`` with integer targets ``(N,)``.
        """
        if self.loss is not None:
            return _scalar(self.loss(outputs, targets))
        if not is_classification(outputs, targets):
            raise ConfigError(
                "The loss is cross-entropy only for one output (N, K) with integer targets (N,).",
                received=f"outputs {_describe(outputs)}, targets {_describe(targets)}",
                fix="Pass loss=, a function (outputs, targets) -> scalar.",
            )
        try:
            return F.cross_entropy(outputs, targets.long())
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(
                "Cross-entropy cannot be computed on a batch.",
                received=f"outputs {_describe(outputs)}, targets {_describe(targets)}: {error}",
                fix="Use class indices from 0 to K - 1, one per sample.",
            ) from error

    def measure(self, outputs: Any, targets: Any) -> float | None:
        """The metric on a batch; None where there is none.

        Raises:
            ConfigError: The metric is no number.
            DataError: Targets are no classes of the outputs.
        """
        if self.metric is not None:
            return _number(self.metric(outputs, targets))
        if not is_classification(outputs, targets):
            return None
        classes = outputs.shape[1]
        if len(targets) != len(outputs) or bool(((targets < 0) | (targets >= classes)).any()):
            raise DataError(
                "Accuracy cannot be computed on a batch.",
                received=f"outputs {_describe(outputs)}, targets {_describe(targets)} from {int(targets.min())} to "
                f"{int(targets.max())}",
                fix=f"Use class indices from 0 to {classes - 1}, one per sample, or pass metric=.",
            )
        return accuracy(outputs, targets)


def is_classification(outputs: Any, targets: Any) -> bool:
    """Whether these are logits ``(N, K)`` and class indices ``(N,)``."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.dim() == 2
        and targets.dim() == 1
        and not targets.is_floating_point()
        and targets.dtype != torch.bool
    )


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or (torch.is_grad_enabled() and not loss.requires_grad):
        raise ConfigError(
            "The loss is one number that depends on the outputs.",
            received=_describe(loss),
            fix="Return a scalar tensor computed from the outputs, not detached.",
        )
    return loss.reshape(())


def _number(metric: Any) -> float:
    if hasattr(metric, "__float__"):
        try:
            return float(metric)
        except (TypeError, ValueError, RuntimeError):  # an array of several numbers
            pass
    raise ConfigError(
        "The metric is one number.", received=_describe(metric), fix="Return a float, larger for a better model."
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__
