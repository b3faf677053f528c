"""Pots: gates that share one part of the budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from autorep_fx.errors import BudgetInfeasibleError
from autorep_fx.gates import GatedActivation

__all__ = ["Pot", "check_shares", "lower_scores", "pots"]


@dataclass(frozen=True)
class Pot:
    """Gates, none of them pinned, that share an allowance.

    Attributes:
        gates: The gates.
        allowed: Nominal comparisons for one sample that they may keep together.
    """

    gates: tuple[GatedActivation, ...]
    allowed: int

    @property
    def kept(self) -> int:
        """Comparisons that they keep now."""
        return sum(gate.kept_comparisons for gate in self.gates)

    @property
    def full(self) -> int:
        """Comparisons with everything kept."""
        return sum(gate.site.comparisons for gate in self.gates)


def pots(gates: Iterable[GatedActivation], allowed: int) -> list[Pot]:
    """One pot per site with a budget of its own, and last the common one, which gets what the others leave.

    Args:
        gates: All gates of a model.
        allowed: What they may keep together, pinned ones included.
    """
    gates = list(gates)
    free = [gate for gate in gates if gate.pinned is None]
    own = [Pot((gate,), gate.own_allowed) for gate in free if gate.own_allowed is not None]
    common = tuple(gate for gate in free if gate.own_allowed is None)
    pinned = sum(gate.kept_comparisons for gate in gates if gate.pinned is not None)
    return [*own, Pot(common, allowed - pinned - sum(pot.allowed for pot in own))]


def check_shares(gates: Iterable[GatedActivation], allowed: int) -> None:
    """Check that what single sites are to keep fits the budget.

    Raises:
        BudgetInfeasibleError: It does not, with the sites.
    """
    shares = {
        gate.site.name: gate.kept_comparisons if gate.pinned else gate.own_allowed
        for gate in gates
        if gate.pinned == "kept" or gate.own_allowed is not None
    }
    total = sum(share or 0 for share in shares.values())
    if total > allowed:
        lines = "\n".join(f"  {name}: {share:,}" for name, share in shares.items())
        raise BudgetInfeasibleError(
            f"Single sites are to keep {total:,} comparisons, the budget allows {allowed:,} for all gates:\n{lines}",
            fix="Give these sites less (mode: keep, budget), or ask for a larger budget.",
        )


@torch.no_grad()
def lower_scores(pot: Pot, excess: int, band: float) -> None:
    """Subtract one amount from all scores so that kept units worth at least ``excess`` fall out of the band."""
    scores = torch.cat([gate.score[gate.kept].flatten() for gate in pot.gates])
    costs = torch.cat([torch.full((int(gate.kept.sum()),), gate.unit_cost, device=scores.device) for gate in pot.gates])
    values, order = scores.sort(stable=True)
    needed = int(torch.searchsorted(costs[order].cumsum(0), excess))
    above = values[values > values[needed]]
    # Half way to the next score, so that rounding in the subtraction flips no other unit.
    edge = (values[needed] + above[0]) / 2 if len(above) else values[-1] + 1.0
    amount = torch.clamp(edge + band, min=0)
    for gate in pot.gates:
        gate.score.sub_(amount)
        gate.update_state()
