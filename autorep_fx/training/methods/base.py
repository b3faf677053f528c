"""What a method decides: where scores start, what the loss adds, and what happens to the gates after a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autorep_fx.config import TransformConfig
from autorep_fx.gates.straight_through import binary_state
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.methods.scores import start_scores

if TYPE_CHECKING:
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["Method"]


class Method:
    """Base of all methods; does nothing beyond starting the scores as the settings say.

    Args:
        config: Settings, with the defaults of the method filled in.

    Attributes:
        state: Numbers that a resumed run needs.
        trains_scores: Whether scores move.
    """

    trains_scores = True

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        self.state: list[float] = []

    def start(self, gated: GatedModel, inputs: ExampleInputs, seed: int) -> None:
        """Start the scores, on a calibrated model.

        Args:
            gated: The model, with everything kept.
            inputs: Samples to measure on.
            seed: Of everything random.
        """
        start_scores(gated, inputs, seed, self.config.gates.init)

    def restart(self, gated: GatedModel) -> None:
        """Go on from a model at a larger budget, whose scores are ranks with the kept units ahead."""

    def penalty(self, gated: GatedModel) -> Tensor:
        """What is added to the loss, before its weight ``training.penalty``; differentiable, a scalar."""
        return torch.zeros((), device=gated.phase.device)

    def update(self, gated: GatedModel, progress: float) -> None:
        """Move the gates after an optimiser step; ``progress`` goes from 0 to 1 over the gate training."""

    def finish(self, gated: GatedModel) -> None:
        """Leave states and scores that the projection can go by."""


def density(gated: GatedModel) -> Tensor:
    """Kept share of the gateable comparisons; its gradient reaches the scores by the straight-through estimator."""
    gateable = max(gated.allowance.gateable, 1)
    shares: Sequence[Tensor] = [
        binary_state(gate.score, gate.kept).sum() * (gate.unit_cost / gateable) for gate in gated.gates.values()
    ]
    return torch.stack(list(shares)).sum()
