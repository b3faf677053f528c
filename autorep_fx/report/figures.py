"""Figures of a report as inline SVG: training curves, and polynomials over the inputs they meet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autorep_fx.report._svg import ACCENT, BAND, FILL, INK, MUTED, draw
from autorep_fx.report.data import HistoryPoint, ReportPolynomial

__all__ = ["kept_figure", "loss_figure", "metric_figure", "polynomial_figure"]

# A curve with few points shows where it was measured; with many, the markers would hide it.
_MAX_MARKERS = 24
# Share of the height that the histogram takes, so that it does not hide the curves.
_HISTOGRAM_HEIGHT = 0.45


def loss_figure(history: Sequence[HistoryPoint], *, prefix: str = "loss") -> str:
    """Draw the training loss over the optimiser steps.

    Args:
        history: At least one point, in the order of the steps.
        prefix: Start of all ids in the figure; unique on a page.
    """

    def plot(axes: Axes) -> None:
        _draw_phases(axes, history)
        _draw_line(axes, history, [point.loss for point in history])

    return draw(prefix, plot)


def metric_figure(history: Sequence[HistoryPoint], *, percent: bool, prefix: str = "metric") -> str:
    """Draw the validation metric over the optimiser steps, at the points where it was evaluated.

    Args:
        history: At least one point, in the order of the steps.
        percent: Whether the metric is a fraction, to be shown in percent.
        prefix: Start of all ids in the figure; unique on a page.
    """
    factor = 100.0 if percent else 1.0

    def plot(axes: Axes) -> None:
        _draw_phases(axes, history)
        _draw_line(axes, history, [np.nan if p.metric is None else factor * p.metric for p in history])
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))

    return draw(prefix, plot)


def kept_figure(history: Sequence[HistoryPoint], *, allowed: int, prefix: str = "kept") -> str:
    """Draw the comparisons that the gates keep over the optimiser steps.

    Args:
        history: At least one point, in the order of the steps.
        allowed: Comparisons that the budget leaves for the gates, drawn as a dashed line.
        prefix: Start of all ids in the figure; unique on a page.
    """

    def plot(axes: Axes) -> None:
        _draw_phases(axes, history)
        axes.axhline(allowed, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        _draw_line(axes, history, [point.kept for point in history])
        axes.set_ylim(bottom=0, top=1.05 * max(1, allowed, *(point.kept for point in history)))
        axes.yaxis.set_major_locator(_locator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return draw(prefix, plot)


def polynomial_figure(polynomial: ReportPolynomial, *, prefix: str) -> str:
    """Draw a polynomial and its activation over the histogram of the inputs.

    Args:
        polynomial: The polynomial of one channel, with at least one bin.
        prefix: Start of all ids in the figure; unique on a page.
    """
    edges = polynomial.edges
    x = np.linspace(edges[0], edges[-1], 161)

    def plot(axes: Axes) -> None:
        # The counts have no axis of their own: only where the inputs lie matters here.
        heights = _HISTOGRAM_HEIGHT * polynomial.counts / max(1, int(polynomial.counts.max()))
        axes.stairs(heights, edges, fill=True, color=FILL, linewidth=0, transform=axes.get_xaxis_transform())
        axes.plot(edges, polynomial.activation, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.plot(x, np.polynomial.Polynomial(polynomial.coefficients)(x), color=ACCENT, linewidth=1.8)
        _limit(axes, float(edges[0]), float(edges[-1]))
        axes.xaxis.set_major_locator(_locator())
        axes.yaxis.set_major_locator(_locator())
        axes.set_xlabel("input")

    return draw(prefix, plot)


def _draw_phases(axes: Axes, history: Sequence[HistoryPoint]) -> None:
    """Shade every second phase and mark where one ends; set the axis of steps."""
    start = history[0].step
    for index, (_, points) in enumerate(groupby(history, key=lambda point: point.phase)):
        end = list(points)[-1].step
        if index > 0:
            axes.axvline(start, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        if index % 2 == 0:
            axes.axvspan(start, end, color=BAND, linewidth=0, zorder=0)
        start = end
    _limit(axes, history[0].step, history[-1].step)
    axes.xaxis.set_major_locator(_locator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("optimiser step")


def _draw_line(axes: Axes, history: Sequence[HistoryPoint], values: Sequence[float]) -> None:
    """Join the finite values; the others leave no mark and no gap."""
    y: npt.NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(y)
    steps = np.asarray([point.step for point in history])[finite]
    marker = "o" if len(steps) <= _MAX_MARKERS else ""
    axes.plot(steps, y[finite], color=ACCENT, marker=marker, markersize=3.5, clip_on=False)


def _limit(axes: Axes, low: float, high: float) -> None:
    """Let the axis of x span ``[low, high]``; a single value gets room on both sides."""
    pad = 0.5 if low == high else 0.0
    axes.set_xlim(low - pad, high + pad)


def _locator(*, integer: bool = False) -> MaxNLocator:
    return MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=integer)
