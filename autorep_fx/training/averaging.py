"""An exponential average of the weights, which is what is evaluated and kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["Average"]


class Average:
    """Average of a module's parameters with a decay per step; buffers are the module's own.

    The decay begins small, ``(1 + n) / (10 + n)`` after n steps, so that short trainings are averaged too.

    Args:
        module: What is trained.
        decay: Decay per step, such as 0.999.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        def mean(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            n = float(count)
            return torch.lerp(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        self._model = AveragedModel(module, avg_fn=mean)

    @property
    def module(self) -> nn.Module:
        """The module with averaged weights."""
        return self._model.module

    def update(self, module: nn.Module) -> None:
        """Take in the weights of now."""
        self._model.update_parameters(module)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return dict(self._model.state_dict())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        self._model.load_state_dict(dict(state))
