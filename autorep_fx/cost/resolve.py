"""What a budget allows in a given model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autorep_fx.budget import Budget
from autorep_fx.errors import BudgetError, BudgetInfeasibleError
from autorep_fx.sites import Site, fixed_comparisons, gateable_comparisons

__all__ = ["Allowance", "resolve"]


@dataclass(frozen=True)
class Allowance:
    """A budget resolved against the sites of a model; all numbers are nominal comparisons for one sample.

    Attributes:
        budget: What the user asked for.
        gateable: Comparisons that gates can remove.
        fixed: Comparisons that no gate removes.
        allowed: Of the gateable comparisons, how many may stay.
    """

    budget: Budget
    gateable: int
    fixed: int
    allowed: int

    @property
    def total(self) -> int:
        """The most that the compiled model may spend, the fixed comparisons included."""
        return self.allowed + self.fixed


def resolve(budget: Budget, sites: Sequence[Site]) -> Allowance:
    """Resolve ``budget``: a fraction refers to the gateable comparisons, a number to the total.

    A budget in bytes, messages or seconds allows everything here; see :mod:`autorep_fx.training.cost_limit`.

    Raises:
        BudgetInfeasibleError: The number is below the fixed floor.
        BudgetError: The number is above what the model spends today.
    """
    gateable, fixed = gateable_comparisons(sites), fixed_comparisons(sites)
    if budget.is_cost:
        return Allowance(budget, gateable, fixed, gateable)
    if budget.kind == "fraction":
        return Allowance(budget, gateable, fixed, budget.of(gateable))
    number = int(budget.value)
    if number < fixed:
        floor = "\n".join(f"  {s.name} ({s.kind}): {s.comparisons:,}, {s.reason}" for s in sites if not s.gateable)
        raise BudgetInfeasibleError(
            f"The budget of {number:,} comparisons is below the {fixed:,} that no gate can remove:\n{floor}",
            received=f"{number:,} comparisons",
            fix=f"Ask for at least {fixed:,}, give a percentage of the gateable comparisons such as '0%' or '5%', "
            f"or change the model{_pools(sites)}.",
        )
    if number > gateable + fixed:
        raise BudgetError(
            f"The budget is above the {gateable + fixed:,} comparisons that the model spends today.",
            received=f"{number:,} comparisons",
            fix=f"Ask for at most {gateable + fixed:,}, or for a percentage such as '5%'.",
        )
    return Allowance(budget, gateable, fixed, number - fixed)


def _pools(sites: Sequence[Site]) -> str:
    """What settings can do about max pooling, where that is in the way."""
    pools = sorted({site.kind for site in sites if not site.gateable and site.kind.startswith("max_pool")})
    if not pools:
        return ""
    average = pools[0].replace("max", "avg")
    return f"; `substitute: {{{pools[0]}: {average}}}` or `gates: {{pools: true}}` takes pooling out"
