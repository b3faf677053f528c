"""AutoReP (arXiv 2308.10134): a penalty on the density above the budget, and hysteresis; no schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autorep_fx.training.methods.base import Method, density

if TYPE_CHECKING:
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["Autorep"]


class Autorep(Method):
    """Scores start from U(0, 1); the loss gets λ·max(0, density − budget), λ = ``training.penalty``.

    The published code stops near the budget; here the projection takes the rest, so that it is met exactly.
    """

    def penalty(self, gated: GatedModel) -> Tensor:
        """``max(0, density − density of the budget)``."""
        return torch.relu(density(gated) - gated.allowance.allowed / max(gated.allowance.gateable, 1))

    @torch.no_grad()
    def update(self, gated: GatedModel, progress: float) -> None:
        """Flip kept gates below −band, and replaced ones above +band."""
        for gate in gated.gates.values():
            gate.update_state()
