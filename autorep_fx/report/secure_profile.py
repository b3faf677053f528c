"""The page of a secure run: predicted against measured bytes, in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autorep_fx.report import _text
from autorep_fx.report._templates import render_template

__all__ = ["secure_profile_page"]


@dataclass(frozen=True)
class _Bar:
    """One call of a module; widths in percent of the largest."""

    name: str
    site: bool
    predicted: str
    measured: str
    width_predicted: str
    width_measured: str
    share: str


def secure_profile_page(run: Mapping[str, Any], profile: Mapping[str, Any], *, title: str) -> str:
    """The page as HTML text; the same values give the same text.

    Args:
        run: The run as in its JSON result.
        profile: Its profile as in the JSON file: ``nodes``, ``calls`` and ``total``.
        title: Name of the model.
    """
    total = profile["total"]
    return render_template(
        "secure_profile.html.j2",
        filters={"told": _told},
        run=run,
        title=title,
        total=total,
        difference=_difference(total),
        bars=_bars(profile),
        nodes=[row for row in profile["nodes"] if row["measured_bytes"] or row["predicted_bytes"] != 0],
        silent=sum(not row["measured_bytes"] and row["predicted_bytes"] == 0 for row in profile["nodes"]),
    )


def _bars(profile: Mapping[str, Any]) -> list[_Bar]:
    rows = [row for row in profile["calls"] if row["measured_bytes"] or row["predicted_bytes"]]
    largest = max((max(row["measured_bytes"], row["predicted_bytes"] or 0) for row in rows), default=0) or 1
    return [
        _Bar(
            row["name"],
            row["site"],
            _told(row["predicted_bytes"]),
            _text.count(row["measured_bytes"]),
            f"{100 * (row['predicted_bytes'] or 0) / largest:.2f}",
            f"{100 * row['measured_bytes'] / largest:.2f}",
            _text.share(row["measured_bytes"], profile["total"]["measured_bytes"]),
        )
        for row in rows
    ]


def _difference(total: Mapping[str, Any]) -> str:
    """How far the prediction is from the measurement, in words."""
    predicted, measured = total["predicted_bytes"], total["measured_bytes"]
    if predicted is None:
        return "not predicted"
    if predicted == measured:
        return "exact"
    return f"{_text.count(measured - predicted)} bytes more" if measured > predicted else (
        f"{_text.count(predicted - measured)} bytes less"
    )  # fmt: skip


def _told(value: int | None) -> str:
    return "–" if value is None else _text.count(value)
