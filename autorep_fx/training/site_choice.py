"""Which sites to open to comparisons, where a site has a price of its own beside that of its elements.

Under a protocol the first kept element of a site costs all its messages. So a budget is not spent by the worth of
single units alone: a site of which little would be kept is closed, and what its messages cost goes to the others; and
one of which nearly all would be kept is kept whole, if its polynomial costs more than the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autorep_fx.gates.selection import select

__all__ = ["SiteOffer", "choose_units"]

Masks = dict[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class SiteOffer:
    """What a site's units are worth, and what they cost.

    Attributes:
        name: Site name.
        worth: ``(units,)`` non-negative: what is lost where a unit is replaced.
        unit_comparisons: Nominal comparisons of one unit.
        entry: Price of keeping any of it.
        saved: What is saved where all of it is kept: its polynomial, and the calls that mix kept and replaced units.
        mixing: What a comparison costs less there, since nothing is mixed.
    """

    name: str
    worth: npt.NDArray[np.float64]
    unit_comparisons: int
    entry: float
    saved: float
    mixing: float = 0.0

    @property
    def comparisons(self) -> int:
        """Nominal comparisons of the whole site."""
        return len(self.worth) * self.unit_comparisons


def choose_units(offers: Sequence[SiteOffer], room: float, comparison: float) -> Masks:
    """Choose the units to keep for the most worth within a price.

    Sites are put in the order of what each alone would give for its entry; the first of them are opened, one more each
    time, and the best of these choices counts.

    Args:
        offers: The sites.
        room: Price that may be paid beyond that of replacing everything.
        comparison: Price of one nominal comparison of a site that is kept in part, without its entry.

    Returns:
        Site name → ``(units,)`` what is kept; False everywhere for a closed site.
    """
    nothing: Masks = {offer.name: np.zeros(len(offer.worth), dtype=bool) for offer in offers}
    choices = [list(offers)]
    if any(_charge(offer, comparison) > 0 for offer in offers):
        alone = {offer.name: _worth([offer], _fill([offer], room, comparison)) for offer in offers}
        falling = sorted(offers, key=lambda offer: -_per_price(alone[offer.name], _charge(offer, comparison)))
        choices += [falling[:number] for number in range(1, len(falling))] + [[offer] for offer in offers]
    filled = [nothing | _fill(_used(choice, room, comparison), room, comparison) for choice in choices]
    best = max([nothing, *filled], key=lambda kept: _worth(offers, kept))
    return {offer.name: _completed(offer, best[offer.name], comparison) for offer in offers}


def _used(offers: list[SiteOffer], room: float, comparison: float) -> list[SiteOffer]:
    """Those of which something is kept: the others give their entry back."""
    while True:
        kept = _fill(offers, room, comparison)
        used = [offer for offer in offers if kept[offer.name].any()]
        if len(used) in (0, len(offers)):
            return used
        offers = used


def _worth(offers: Sequence[SiteOffer], kept: Masks) -> float:
    return sum(float(offer.worth[kept[offer.name]].sum()) for offer in offers)


def _per_price(worth: float, price: float) -> float:
    return worth / price if price > 0 else float("inf")


def _charge(offer: SiteOffer, comparison: float) -> float:
    """Price of opening a site: where elements cost nothing it is kept whole."""
    return offer.entry if comparison else offer.entry - offer.saved


def _fill(offers: Sequence[SiteOffer], room: float, comparison: float) -> Masks:
    """The units of most worth per comparison for what the entries leave; nothing where they leave less than nothing."""
    left = room - sum(_charge(offer, comparison) for offer in offers)
    if left < 0:
        return {offer.name: np.zeros(len(offer.worth), dtype=bool) for offer in offers}
    if not comparison:
        return {offer.name: np.ones(len(offer.worth), dtype=bool) for offer in offers}
    if not offers:
        return {}
    worth = np.concatenate([offer.worth / offer.unit_comparisons for offer in offers])
    costs = np.concatenate([np.full(len(offer.worth), offer.unit_comparisons, dtype=np.int64) for offer in offers])
    allowance = min(int(left / comparison), int(costs.sum()))
    parts = np.split(select(worth, costs, allowance), np.cumsum([len(offer.worth) for offer in offers])[:-1])
    return {offer.name: part for offer, part in zip(offers, parts, strict=True)}


def _completed(offer: SiteOffer, kept: npt.NDArray[np.bool_], comparison: float) -> npt.NDArray[np.bool_]:
    """All of a site, where that costs no more than the part of it that is kept and the polynomial of the rest."""
    part = int(kept.sum()) * offer.unit_comparisons * comparison
    whole = offer.comparisons * (comparison - offer.mixing) - offer.saved
    return np.ones_like(kept) if kept.any() and whole <= part else kept
