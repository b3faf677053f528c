"""The report as one HTML file that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from autorep_fx.files import output_directory, write_text
from autorep_fx.report import _text, figures
from autorep_fx.report._templates import render_template
from autorep_fx.report.data import ReportData, ReportSite

__all__ = ["render", "write_report"]


def render(data: ReportData) -> str:
    """Return the page of a report as HTML text; the same data give the same text.

    All strings of ``data`` are shown as they are: markup in them is escaped.
    """
    return render_template(
        "page.html.j2",
        filters={"shape": _text.shape, "span": _text.span},
        data=data,
        kept_share=_text.share(data.after - data.fixed, data.before - data.fixed),
        gateable=data.before - data.fixed,
        metrics=_metric_rows(data),
        bars=_bars(data.sites),
        phases=[phase for phase, _ in groupby(data.history, key=lambda point: point.phase)],
        curves=_curves(data),
        polynomials=_polynomials(data),
    )


def write_report(data: ReportData, path: Path | str) -> Path:
    """Write the page of a report and return its path.

    The page is written beside the target and then renamed, so that no half-written file is ever left. Missing
    folders are made.

    Raises:
        OutputError: The target is a folder, or cannot be written.
    """
    target = Path(path)
    output_directory(target.parent)
    # File names may hold bytes that are no text; they must not cost the user the report.
    text = render(data).encode("utf-8", errors="backslashreplace").decode("utf-8")
    write_text(target, text)
    return target


@dataclass(frozen=True)
class _Bar:
    """One row of the bar chart; widths in percent of the largest site."""

    site: ReportSite
    width_before: str
    width_after: str
    kept: str


@dataclass(frozen=True)
class _MetricRow:
    label: str
    value: str
    change: str


@dataclass(frozen=True)
class _Plot:
    """A figure with its caption; ``detail`` is a second line."""

    caption: str
    detail: str
    svg: Markup


def _bars(sites: tuple[ReportSite, ...]) -> list[_Bar]:
    largest = max((site.before for site in sites), default=0) or 1
    return [
        _Bar(
            site,
            f"{100 * site.before / largest:.2f}",
            f"{100 * site.after / largest:.2f}",
            _text.share(site.after, site.before),
        )
        for site in sites
    ]


def _in_percent(data: ReportData) -> bool:
    """Whether the metric reads as percent: said to be a fraction, and never outside [0, 1]."""
    logged = [point.metric for point in data.history if point.metric is not None]
    return data.metric_is_fraction and all(0.0 <= value <= 1.0 for value in [*data.metrics.values(), *logged])


def _metric_rows(data: ReportData) -> list[_MetricRow]:
    percent = _in_percent(data)
    reference = next(iter(data.metrics.values()), 0.0)
    return [
        _MetricRow(
            label,
            _text.metric(value, percent=percent),
            "" if index == 0 else _text.change(value, reference, percent=percent),
        )
        for index, (label, value) in enumerate(data.metrics.items())
    ]


def _curves(data: ReportData) -> list[_Plot]:
    history = data.history
    if not history:
        return []
    allowed = data.after + data.unspent - data.fixed
    kept = figures.kept_figure(history, allowed=allowed)
    detail = f"gateable ones; dashed: the budget’s {_text.count(allowed)}"
    curves = [
        _Plot("Kept comparisons", detail, Markup(kept)),
        _Plot("Training loss", "mean since the previous point", Markup(figures.loss_figure(history))),
    ]
    if any(point.metric is not None for point in history):
        svg = figures.metric_figure(history, percent=_in_percent(data))
        curves.append(_Plot(f"Validation {data.metric_name or 'metric'}", "", Markup(svg)))
    return curves


def _polynomials(data: ReportData) -> list[_Plot]:
    return [
        _Plot(
            f"{polynomial.site}, channel {polynomial.channel}",
            f"{polynomial.kind} ≈ {_text.formula(polynomial)}",
            Markup(figures.polynomial_figure(polynomial, prefix=f"polynomial-{index}")),
        )
        for index, polynomial in enumerate(data.polynomials)
    ]
