"""SNL (arXiv 2202.02340): soft masks under an L1 penalty, the identity in place of ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autorep_fx.config import TransformConfig
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.methods.base import Method
from autorep_fx.training.methods.scores import free_gates

if TYPE_CHECKING:
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["Snl"]

_THRESHOLD = 1e-2  # a mask above it counts as kept
_GROWTH = 1.1  # of the penalty when the count is stuck


class Snl(Method):
    """``y = α·relu(x) + (1 − α)·x`` with α the score; the loss gets λ·Σ|α| until the count is within the budget.

    At the end of an epoch in which the count fell by less than its share of what was left, λ grows by a tenth. The
    projection binarises: the largest α stay.
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__(config)
        self.state = [1.0, 0.0, -1.0]  # factor of λ, epochs done, count at the end of the last one

    def start(self, gated: GatedModel, inputs: ExampleInputs, seed: int) -> None:
        """Start the masks, and mix by them."""
        super().start(gated, inputs, seed)
        for gate in free_gates(gated).values():
            gate.soft = True

    def restart(self, gated: GatedModel) -> None:
        """Mix softly again, from masks of 1 and 0."""
        for gate in free_gates(gated).values():
            gate.score.data.copy_(gate.kept)
            gate.soft = True

    def penalty(self, gated: GatedModel) -> Tensor:
        """``Σ|α|``, grown where the count was stuck; 0 within the budget."""
        masks = [gate.score.abs().sum() for gate in free_gates(gated).values()]
        if gated.unspent >= 0 or not masks:
            return torch.zeros((), device=gated.phase.device)
        return self.state[0] * torch.stack(masks).sum()

    @torch.no_grad()
    def update(self, gated: GatedModel, progress: float) -> None:
        """Count masks above the threshold as kept; at the end of an epoch, see whether the count is stuck."""
        for gate in free_gates(gated).values():
            gate.kept.copy_(gate.score > _THRESHOLD)
        epochs = max(self.config.training.epochs, 1)
        growth, done, before = self.state
        if progress * epochs < done + 1:
            return
        excess = before - gated.allowance.allowed
        fair = excess / max(epochs - done, 1)
        stuck = before >= 0 and before - gated.kept < fair
        self.state = [growth * (_GROWTH if stuck else 1.0), done + 1, float(gated.kept)]

    def finish(self, gated: GatedModel) -> None:
        """Mix by the states from now on."""
        for gate in gated.gates.values():
            gate.soft = False
