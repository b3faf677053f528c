"""A budget in bytes, messages or seconds: which sites it opens, and how many comparisons it leaves them.

The price list of a protocol says how to choose; what a choice costs is measured: the model is lowered with it, and the
cost of that graph is predicted. So a choice is corrected until the graph that runs is within the budget.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from autorep_fx.amounts import write_amount
from autorep_fx.cost.tariff import Tariff
from autorep_fx.errors import BudgetError, BudgetInfeasibleError
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.project_budget import ProjectBudgetPass
from autorep_fx.training.methods.scores import free_gates, measured_errors
from autorep_fx.training.site_choice import Masks, SiteOffer, choose_units

if TYPE_CHECKING:
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["Meter", "open_sites", "project_within"]

# Each try lowers the model. Bytes are nearly linear in what is kept, so that the third one is right; the others are for
# channels that disappear, sites that close, and calls of few elements under CHEETAH.
_TRIES = 8
# Where elements cost nothing, a budget is used up when nothing at all is left of it.
_ANY = 1e-12
# What brings a kept element to the scale in which the polynomials of its channel are stored.
_MIXING = ("product", "truncation")


class Meter(Protocol):
    """Says what a gated model costs with its gates as they are."""

    tariff: Tariff

    def spent(self, gated: GatedModel) -> float:
        """Cost of the lowered model, in the unit of the budget."""
        ...

    def spent_lowered(self, module: CapturedModule, example: ExampleInputs) -> float:
        """The same of a lowered module."""
        ...


def open_sites(gated: GatedModel, meter: Meter, seed: int) -> None:
    """Settle which sites may keep anything, and how many comparisons all may keep; the gates stay as they are.

    Closed sites get a budget of 0 of their own, and sites that are kept whole one of all their comparisons, so that the
    gate training leads each of them there gradually.

    Args:
        gated: A calibrated model.
        meter: Of its budget.
        seed: Of the estimate of what units are worth.

    Raises:
        BudgetInfeasibleError: The budget is below what the model costs with everything replaced.
        BudgetError: It is above what the model costs with everything kept, or what that costs is not known.
    """
    gates, before = free_gates(gated), {name: gate.kept.clone() for name, gate in gated.gates.items()}
    room = _room(gated, meter)
    for name, gate in gated.gates.items():
        gate.kept.copy_(before[name])
    worth = measured_errors(gated, gated.sample, seed)
    offers = [_offer(gate, worth[name].flatten().cpu().double().numpy(), meter.tariff) for name, gate in gates.items()]
    masks = _measured_choice(gated, meter, offers, room)
    for name, gate in gates.items():
        kept = int(masks[name].sum())
        gate.own_allowed = {0: 0, len(masks[name]): gate.site.comparisons}.get(kept)
        gate.kept.copy_(before[name])
    pinned = sum(gate.kept_comparisons for gate in gated.gates.values() if gate.pinned is not None)
    chosen = sum(int(masks[name].sum()) * gate.unit_cost for name, gate in gates.items())
    gated.allowance = replace(gated.allowance, allowed=pinned + chosen)


def project_within(gated: GatedModel, meter: Meter) -> None:
    """Project onto as many comparisons as the budget has room for in the lowered graph.

    Raises:
        BudgetInfeasibleError: Not even the least that the open sites may keep is within the budget.
    """
    limit, tried = float(gated.allowance.budget.value), dict[int, float]()
    allowed = gated.allowance.allowed
    while allowed not in tried and len(tried) < _TRIES:
        tried[allowed] = _spent_at(gated, meter, allowed)
        wanted = _next(gated, meter, limit - tried[allowed])
        below = [number for number, spent in tried.items() if spent <= limit]
        above = [number for number, spent in tried.items() if spent > limit]
        allowed = _between(wanted, max(below, default=_least(gated)), min(above, default=wanted + 1))
    fitting = [number for number, spent in tried.items() if spent <= limit]
    best = max(fitting) if fitting else _least(gated)
    spent = tried[best] if best in tried else _spent_at(gated, meter, best)
    if spent > limit:
        raise BudgetInfeasibleError(
            "The trained model costs more than the budget even where the least is kept.",
            received=f"{write_amount(gated.allowance.budget.kind, spent)}; the budget is {gated.allowance.budget}",
            fix="Ask for more, or set degree 1 (polynomials: {degree: 1}), whose polynomials cost nothing.",
        )
    _keep(gated, best)


def _room(gated: GatedModel, meter: Meter) -> float:
    """What the budget leaves beyond everything replaced; negative where only everything kept is within it."""
    budget = gated.allowance.budget
    limit, spent = float(budget.value), {}
    for state in ("kept", "replaced"):
        gated.set_gates_to(state)
        spent[state] = meter.spent(gated)
    least, most = (write_amount(budget.kind, amount) for amount in (min(spent.values()), max(spent.values())))
    if limit < min(spent.values()):
        raise BudgetInfeasibleError(
            f"The budget is below the {least} that a query costs with every site replaced as far as the settings "
            "allow it, and below what it costs with everything kept.", received=str(budget),
            fix=f"Ask for at least {least}; polynomials of degree 1 cost nothing (polynomials: {{degree: 1}}).",
        )  # fmt: skip
    if limit > max(spent.values()):
        raise BudgetError(
            f"The budget is above the {most} that a query of the model costs at most.", received=str(budget),
            fix=f"Ask for at most {most}.",
        )  # fmt: skip
    return limit - spent["replaced"]


def _comparison(gated: GatedModel, tariff: Tariff) -> float:
    """Price of a comparison of a site that is kept in part: kept elements are brought to the scale of the others."""
    mixed = any(gate.granularity == "element" for gate in gated.gates.values())
    return tariff.comparison + (tariff.of_elements(*_MIXING) if mixed else 0.0)


def _offer(gate: GatedActivation, worth: np.ndarray[tuple[int], np.dtype[np.float64]], tariff: Tariff) -> SiteOffer:
    """A site's prices: each comparison of an element waits for the one before, those of a pool in rounds."""
    each, mixed = gate.site.comparisons_per_element, gate.granularity == "element"
    steps = math.ceil(math.log2(each + 1)) if gate.site.kind.startswith("max_pool") else each
    mixing = tariff.of_calls(*_MIXING) if mixed else 0.0
    squares = tariff.square * gate.site.elements + tariff.of_calls(*tariff.squaring) if gate.degree == 2 else 0.0
    return SiteOffer(
        gate.site.name, worth, gate.unit_cost, steps * tariff.of_calls("compare", "select") + mixing, squares + mixing,
        tariff.of_elements(*_MIXING) if mixed else 0.0,
    )  # fmt: skip


def _measured_choice(gated: GatedModel, meter: Meter, offers: list[SiteOffer], room: float) -> Masks:
    """The choice of most comparisons that is within the budget when it is lowered."""
    limit, comparison = float(gated.allowance.budget.value), _comparison(gated, meter.tariff)
    best: Masks = {offer.name: np.zeros(len(offer.worth), dtype=bool) for offer in offers}
    if room < 0:
        return {offer.name: np.ones(len(offer.worth), dtype=bool) for offer in offers}
    most, low, high = -1, 0.0, math.inf  # rooms that are known to be small enough, and too large
    measured: dict[tuple[bytes, ...], float] = {}
    room = min(room, sum(offer.entry + offer.comparisons * comparison for offer in offers))  # no choice costs more
    for _ in range(_TRIES):
        masks = choose_units(offers, room, comparison)
        states = tuple(mask.tobytes() for mask in masks.values())
        if states not in measured:
            for name, mask in masks.items():
                kept = gated.gates[name].kept
                kept.copy_(torch.from_numpy(mask).view(kept.shape))
            measured[states] = meter.spent(gated)
        spare = limit - measured[states]
        if spare >= 0:
            low = max(low, room)
            number = sum(int(masks[offer.name].sum()) * offer.unit_comparisons for offer in offers)
            best, most = (masks, number) if number > most else (best, most)
        else:
            high = min(high, room)
        if 0 <= spare < max(comparison, _ANY) or high - low <= comparison:
            break
        wanted = room + (spare if spare >= 0 else min(spare, -comparison))
        room = wanted if low < wanted < high else (low + high) / 2
    return best


def _spent_at(gated: GatedModel, meter: Meter, allowed: int) -> float:
    _keep(gated, allowed)
    return meter.spent(gated)


def _keep(gated: GatedModel, allowed: int) -> None:
    """Project onto so many comparisons."""
    gated.allowance = replace(gated.allowance, allowed=allowed)
    ProjectBudgetPass(allowed)(gated.network)


def _between(wanted: int, low: int, high: int) -> int:
    """``wanted``, or the middle where it is not between what is known to fit and what is known not to."""
    return wanted if low <= wanted < high else (low + high) // 2


def _least(gated: GatedModel) -> int:
    """Comparisons of the sites that keep a number of their own."""
    pots = gated.pots()
    return gated.allowance.allowed - pots[-1].allowed


def _next(gated: GatedModel, meter: Meter, spare: float) -> int:
    """How many comparisons to try next; the present number where that is as close as units and prices allow."""
    allowed, price, common = gated.allowance.allowed, _comparison(gated, meter.tariff), gated.pots()[-1]
    open_units = [gate.unit_cost for gate in common.gates if not bool(gate.kept.all())]
    if not price or not common.gates or (spare >= 0 and (not open_units or spare < price * min(open_units))):
        return allowed
    kept = allowed - gated.unspent
    wanted = kept + math.floor(spare / price)
    return min(max(wanted, _least(gated)), _least(gated) + common.full)
