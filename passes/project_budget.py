"""Project onto the budget: choose the kept units by score under the exactness rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from autorep_fx.errors import NonFiniteError
from autorep_fx.gates import GatedActivation, select
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.insert_gates import gates_of
from autorep_fx.passes.pots import pots

__all__ = ["ProjectBudgetPass"]


class ProjectBudgetPass(Pass):
    """Keeps the units of highest score that fit the budget.

    Sites with a budget of their own come first, one by one; then all others together, in what is left.

    Args:
        allowed: Nominal comparisons for one sample that the gates may keep.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def call(self, module: fx.GraphModule) -> PassResult:
        """Select, and set the state of every gate.

        Raises:
            NonFiniteError: A score is NaN.
        """
        *own, common = pots(gates_of(module).values(), self.allowed)
        modified = False
        for pot in own:
            modified = _project(pot.gates, pot.allowed) or modified
        unspent = sum(pot.allowed - pot.kept for pot in own)
        modified = _project(common.gates, common.allowed + unspent) or modified
        return PassResult(module, modified)

    def ensures(self, result: PassResult) -> None:
        """Never above the budget, and what is left over is smaller than the cheapest unit that is not kept."""
        *_, common = pots(gates_of(result.module).values(), self.allowed)
        left = self.allowed - sum(gate.kept_comparisons for gate in gates_of(result.module).values())
        usable = [gate.unit_cost for gate in common.gates if not bool(gate.kept.all())]
        if left < 0 or (usable and left >= min(usable)):
            raise ValueError(f"{left} comparisons are left over; the cheapest unit costs {min(usable, default=0)}")


def _project(gates: Sequence[GatedActivation], allowed: int) -> bool:
    """Select among the units of ``gates``; returns whether any state changed."""
    if not gates:
        return False
    scores = np.concatenate([_scores(gate) for gate in gates])
    costs = np.concatenate([np.full(gate.kept.numel(), gate.unit_cost, dtype=np.int64) for gate in gates])
    kept = torch.from_numpy(select(scores, costs, allowed))
    modified = False
    for gate, part in zip(gates, kept.split([gate.kept.numel() for gate in gates]), strict=True):
        state = part.view(gate.kept.shape).to(gate.kept.device)
        modified = modified or not torch.equal(state, gate.kept)
        gate.kept.copy_(state)
    return modified


def _scores(gate: GatedActivation) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    scores = gate.score.detach().flatten().double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            f"A gate score of site {gate.site.name} is not finite.",
            fix="Lower the learning rate of the gates, or check the data for NaN.",
        )
    return scores
