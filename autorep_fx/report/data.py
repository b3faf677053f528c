"""What a report shows, as plain records: no torch, no module, nothing to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["HistoryPoint", "ReportData", "ReportPolynomial", "ReportSite"]


@dataclass(frozen=True)
class ReportSite:
    """One row of the per-site table.

    Attributes:
        name: The call site, such as ``layer1.0.relu#2``.
        kind: The activation kind, such as ``relu``.
        shape: Shape of one sample's output, such as ``(C, H, W)``.
        before: Nominal comparisons of the original model at this site, for one sample.
        after: Nominal comparisons of the compiled model at this site, for one sample.
        granularity: ``element``, ``channel``, ``site``, or ``fixed`` where no gate was set.
        degree: Degree of the polynomial that replaces it; None where no gate was set.
        source: ``file.py:line`` of the call, if it is known.
        input_range: Smallest and largest input seen in calibration; None if it was not recorded.
        note: Why a site is fixed, or what calibration had to do; empty if there is nothing to say.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    before: int
    after: int
    granularity: str
    degree: int | None = None
    source: str | None = None
    input_range: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class HistoryPoint:
    """One logged point of training.

    Attributes:
        phase: ``train_gates`` or ``finetune``.
        step: Optimiser steps since the start, over all phases.
        loss: Mean training loss since the last point.
        kept: Comparisons that the gates keep at this step, fixed ones not counted.
        metric: Value of the metric on the validation data; None where it was not evaluated.
    """

    phase: str
    step: int
    loss: float
    kept: int
    metric: float | None = None


@dataclass(frozen=True)
class ReportPolynomial:
    """A channel's polynomial and the distribution that it met in calibration.

    Attributes:
        site: Name of the site.
        kind: Activation kind that is replaced.
        channel: Channel index.
        coefficients: ``(degree + 1,)``, lowest power first.
        edges: ``(bins + 1,)`` histogram edges of the channel's input.
        counts: ``(bins,)`` histogram counts.
        activation: ``(bins + 1,)`` values of the replaced activation at the edges.
    """

    site: str
    kind: str
    channel: int
    coefficients: npt.NDArray[np.float64]
    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReportData:
    """Everything on one report page.

    Attributes:
        title: Name of the model.
        budget: The budget as the user wrote it, such as ``5%``.
        before: Nominal comparisons of the original model for one sample, fixed ones included.
        after: The same of the compiled model.
        fixed: Comparisons that no gate can remove.
        unspent: Comparisons of the budget that no selection of gates could spend.
        sites: All sites in execution order.
        history: Training curve; empty where nothing was trained.
        polynomials: A few channels to draw.
        metric_name: Name of the metric, such as ``accuracy``; None where there was none.
        metrics: Label to value, such as ``{"ReLU model, torch": 0.98}``; the first is the original model's,
            with which the others are compared, and the last is the compiled model's.
        warnings: What the reader must know, such as range warnings.
        notes: What the compiler did of its own accord.
        settings: The full settings as YAML text.
        versions: Package to version.
        metric_is_fraction: Whether the metric is a fraction of 1, shown in percent and percentage points; a
            value outside [0, 1] switches that off.
    """

    title: str
    budget: str
    before: int
    after: int
    fixed: int
    unspent: int
    sites: tuple[ReportSite, ...]
    history: tuple[HistoryPoint, ...] = ()
    polynomials: tuple[ReportPolynomial, ...] = ()
    metric_name: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    metric_is_fraction: bool = True
