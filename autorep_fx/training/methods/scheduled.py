"""The default method: the kept comparisons follow a schedule, and the scores decide alone who goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autorep_fx.config import TransformConfig
from autorep_fx.passes.pots import Pot, lower_scores
from autorep_fx.training.methods.base import Method, density
from autorep_fx.training.schedule import kept_target

if TYPE_CHECKING:
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["Scheduled"]


class Scheduled(Method):
    """Gates flip by their hysteresis band; what is kept above the schedule goes, by the lowest scores.

    Lowering all scores by one amount reaches the budget at ``training.reach`` whatever the number of steps, where a
    fixed penalty alone depends on it.
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__(config)
        self.state = [1.0]  # share of the free comparisons that is kept at the start

    def restart(self, gated: GatedModel) -> None:
        """The schedule starts from what is kept now."""
        pots = gated.pots()
        self.state = [sum(pot.kept for pot in pots) / max(sum(pot.full for pot in pots), 1)]

    def penalty(self, gated: GatedModel) -> Tensor:
        """``max(0, density − density of the schedule)``."""
        return torch.relu(density(gated) - self._target(gated) / max(gated.allowance.gateable, 1))

    def _target(self, gated: GatedModel) -> int:
        pinned = sum(gate.kept_comparisons for gate in gated.gates.values() if gate.pinned is not None)
        return pinned + sum(self._pot_target(pot, gated.progress) for pot in gated.pots())

    def _pot_target(self, pot: Pot, progress: float) -> int:
        allowed = min(pot.allowed, pot.full)
        start = max(round(self.state[0] * pot.full), allowed)
        return kept_target(progress, start, allowed, self.config.training.reach)

    @torch.no_grad()
    def update(self, gated: GatedModel, progress: float) -> None:
        """Flip by the band, then close the gap to the schedule."""
        for pot in gated.pots():
            for gate in pot.gates:
                gate.update_state()
            excess = pot.kept - self._pot_target(pot, progress)
            if excess > 0:
                lower_scores(pot, excess, self.config.gates.band)
