"""The page of a sweep: a table and the Pareto plot, in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from autorep_fx.report import _text
from autorep_fx.report._svg import ACCENT, MUTED, draw
from autorep_fx.report._templates import render_template

__all__ = ["sweep_figure", "sweep_page"]


def sweep_figure(points: Sequence[tuple[int, float]], original: float, floor: float, *, prefix: str = "sweep") -> str:
    """Draw the metric over the comparisons.

    Args:
        points: (comparisons, metric) of every budget.
        original: Metric of the untouched model.
        floor: Lowest metric that is still good.
        prefix: Start of all ids in the figure; unique on a page.
    """

    def plot(axes: Axes) -> None:
        ordered = sorted(points)
        smallest = min((x for x, _ in ordered if x), default=1)
        axes.set_xscale("symlog", linthresh=smallest)
        axes.axhline(original, color=MUTED, linestyle=":", linewidth=1)
        axes.axhline(floor, color=MUTED, linewidth=0.6)
        axes.plot([x for x, _ in ordered], [y for _, y in ordered], color=ACCENT, marker="o", markersize=3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _text.count(int(value))))
        axes.set_xlabel("comparisons per sample")

    return draw(prefix, plot, width=6.0, height=3.0)


def sweep_page(sweep: Mapping[str, Any], *, title: str) -> str:
    """The page as HTML text.

    Args:
        sweep: As in ``sweep.json``.
        title: Name of the model.
    """
    original = sweep["original"]["metric"]
    points = [(row["comparisons"], row["metric"]) for row in sweep["rows"] if row["metric"] is not None]
    figure = None
    if points and original is not None:
        figure = Markup(sweep_figure(points, original, original - sweep["max_drop"]))
    return render_template("sweep.html.j2", sweep=sweep, title=title, figure=figure)
