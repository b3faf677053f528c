"""Table and plot of the accuracy benchmark, from its rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from scipy.stats import t as student

mpl.use("Agg")
import matplotlib.pyplot as plt

Row = Mapping[str, Any]
# Points of accuracy below the ReLU model that the second plot shows.
_NEAR = 4.0


def write_report(rows: Sequence[Row], stem: Path, conditions: Mapping[str, Any]) -> None:
    """Write ``stem.md`` and, where there is more than the ReLU model, ``stem.png``."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["run"], " ".join(row["set"])), []).append(row)
    base = {row["seed"]: row["test"] for row in rows if row["run"] == "relu"}
    lines = [
        f"# Accuracy, suite {conditions['suite']}",
        "",
        "`benchmarks/accuracy.py`, " + ", ".join(f"{key} {value}" for key, value in conditions.items()) + ".",
        "Accuracy of the compiled model on the test part; mean over the seeds ± 95 % interval (Student's t), and the",
        "difference to the ReLU model of the same seed, in points. Seconds per run are medians, no timing benchmark.",
        "",
        "| run | settings | comparisons | n | epochs | accuracy | change in points | seconds | commits |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for (run, changes), members in groups.items():
        gaps = [100 * (row["test"] - base[row["seed"]]) for row in members if row["seed"] in base]
        counted = members[0]["comparisons"]
        lines.append(
            f"| {run} | {changes} | {'' if counted is None else f'{counted:,}'} | {len(members)} | "
            f"{members[0].get('epochs', '')} | {interval([100 * row['test'] for row in members])} | {interval(gaps)} | "
            f"{statistics.median(row['seconds'] for row in members):.0f} | "
            f"{' '.join(sorted({row['commit'] for row in members}))} |"
        )
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    if len(groups) > 1:
        _plot(groups, base, stem.with_suffix(".png"))


def interval(values: Sequence[float]) -> str:
    """Mean and half width of the 95 % interval; the mean alone for one value."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {half_width(values):.2f}"


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of the mean; 0 for one value."""
    if len(values) == 1:
        return 0.0
    return float(student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)))


def _plot(groups: Mapping[tuple[str, str], Sequence[Row]], base: Mapping[int, float], path: Path) -> None:
    """All runs, and beside them those near the ReLU model, with methods apart where their points would hide others."""
    figure, (whole, near) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    methods = sorted({run.split("@")[0] for run, _ in groups if run != "relu"})
    for number, method in enumerate(methods):
        points = sorted(
            (members[0]["comparisons"], [100 * row["test"] for row in members])
            for (run, changes), members in groups.items()
            if run.split("@")[0] == method and not changes
        )
        if not points:
            continue
        means, halves = ([of(values) for _, values in points] for of in (statistics.mean, half_width))
        for axes, apart in ((whole, 0.0), (near, 0.04 * (number - (len(methods) - 1) / 2))):
            places = [x * (1 + apart) + 1000 * apart * (x == 0) for x, _ in points]
            axes.errorbar(places, means, halves, marker="o", capsize=3, label=method)
    for axes in (whole, near):
        axes.set_xscale("symlog", linthresh=1000)
        axes.margins(x=0.08)
        axes.set_xlabel("comparisons per sample")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    if base:
        relu = 100 * statistics.mean(base.values())
        near.set_ylim(relu - _NEAR, relu + _NEAR / 2)
        for axes in (whole, near):
            axes.axhline(relu, color="black", linestyle=":", label="ReLU model")
    near.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
