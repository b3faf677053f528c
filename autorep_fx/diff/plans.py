"""Two plans, site by site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autorep_fx.plan import FixedSite, Plan, SitePlan

__all__ = ["PlanDiff", "SiteDiff", "diff_plans"]


@dataclass(frozen=True)
class SiteDiff:
    """One site in two plans; ``(before, after)`` pairs have None where a plan does not gate the site.

    Attributes:
        name: Site name.
        comparisons: Nominal comparisons that stay, of a fixed site too.
        kept: Elements that stay the activation.
        granularity: What one gate decides on, or ``fixed``.
        degree: Degree of the polynomials.
        newly_replaced: Elements that were kept and are replaced now; None where the shapes differ.
        newly_kept: The other way round.
        coefficients: Largest absolute change over the channels, per power from the lowest; of channels that both plans
            replace something in. Empty where there is none, or where the channels differ.
    """

    name: str
    comparisons: tuple[int | None, int | None]
    kept: tuple[int | None, int | None] = (None, None)
    granularity: tuple[str | None, str | None] = (None, None)
    degree: tuple[int | None, int | None] = (None, None)
    newly_replaced: int | None = None
    newly_kept: int | None = None
    coefficients: tuple[float, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything differs."""
        pairs = (self.comparisons, self.kept, self.granularity, self.degree)
        flipped = (self.newly_replaced or 0) + (self.newly_kept or 0)
        return any(a != b for a, b in pairs) or flipped > 0 or any(self.coefficients)


@dataclass(frozen=True)
class PlanDiff:
    """Two plans.

    Attributes:
        same_graph: Whether both were made for the same canonical graph.
        budgets: What was asked for.
        comparisons: In total, for one sample.
        sites: All sites of both, in execution order, those of the second alone last.
    """

    same_graph: bool
    budgets: tuple[str, str]
    comparisons: tuple[int, int]
    sites: tuple[SiteDiff, ...]

    @property
    def changed(self) -> tuple[SiteDiff, ...]:
        """Sites where anything differs."""
        return tuple(site for site in self.sites if site.changed)

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {"kind": "plans", **asdict(self)}


def diff_plans(before: Plan, after: Plan) -> PlanDiff:
    """Compare two plans; they need not be of the same model."""
    sides = _by_name(before), _by_name(after)
    names = dict.fromkeys([*sides[0], *sides[1]])
    return PlanDiff(
        before.fingerprint == after.fingerprint, (str(before.budget), str(after.budget)),
        (before.comparisons, after.comparisons),
        tuple(_site(name, sides[0].get(name), sides[1].get(name)) for name in names),
    )  # fmt: skip


def _by_name(plan: Plan) -> dict[str, SitePlan | FixedSite]:
    sites: list[SitePlan | FixedSite] = [*plan.sites, *plan.fixed]
    return {site.name: site for site in sites}


def _site(name: str, before: SitePlan | FixedSite | None, after: SitePlan | FixedSite | None) -> SiteDiff:
    a, b = _row(before), _row(after)
    replaced = kept = None
    coefficients: tuple[float, ...] = ()
    if isinstance(before, SitePlan) and isinstance(after, SitePlan):
        replaced, kept = _flipped(before, after)
        coefficients = _coefficients(before, after)
    return SiteDiff(
        name, (a.get("comparisons"), b.get("comparisons")), (a.get("kept"), b.get("kept")),
        (a.get("granularity"), b.get("granularity")), (a.get("degree"), b.get("degree")), replaced, kept, coefficients,
    )  # fmt: skip


def _row(site: SitePlan | FixedSite | None) -> Mapping[str, Any]:
    if site is None:
        return {}
    if isinstance(site, FixedSite):
        return {"comparisons": site.comparisons, "granularity": "fixed"}
    return {
        "comparisons": site.comparisons, "kept": site.kept_elements, "granularity": site.granularity,
        "degree": site.degree,
    }  # fmt: skip


def _flipped(before: SitePlan, after: SitePlan) -> tuple[int | None, int | None]:
    """Elements, so that plans of other granularities can be compared."""
    if before.shape != after.shape:
        return None, None
    a, b = (np.broadcast_to(site.kept, site.shape) for site in (before, after))
    return int((a & ~b).sum()), int((b & ~a).sum())


def _coefficients(before: SitePlan, after: SitePlan) -> tuple[float, ...]:
    if before.coefficients.shape[1] != after.coefficients.shape[1]:
        return ()
    powers = max(len(before.coefficients), len(after.coefficients))
    a, b = (_padded(site.coefficients, powers) for site in (before, after))
    used = _replaces(before) & _replaces(after)
    if not used.any():
        return ()
    return tuple(float(value) for value in np.abs(a - b)[:, used].max(axis=1))


def _padded(coefficients: npt.NDArray[np.float64], powers: int) -> npt.NDArray[np.float64]:
    return np.pad(coefficients, ((0, powers - len(coefficients)), (0, 0)))


def _replaces(site: SitePlan) -> npt.NDArray[np.bool_]:
    """Per channel of the coefficients, whether any element is replaced; of all where channels cannot be told apart."""
    channels = site.coefficients.shape[1]
    kept = np.broadcast_to(site.kept, site.shape)
    axes = [axis for axis, size in enumerate(site.shape) if size == channels]
    if len(axes) != 1:  # one polynomial for the site, or an axis of another one's size
        return np.full(channels, not kept.all())
    others = tuple(axis for axis in range(kept.ndim) if axis != axes[0])
    return np.asarray(~kept.all(axis=others))
