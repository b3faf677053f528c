"""Example reports: one like a ResNet-18, and the smallest that makes sense."""

from __future__ import annotations

import numpy as np
import pytest

from autorep_fx.report.data import HistoryPoint, ReportData, ReportPolynomial, ReportSite

KEPT = (0, 0, 310, 1_204, 0, 2_048, 1_977, 0, 863, 1_502, 640, 1_111, 2_001, 5, 1_200, 39, 0)


def make_sites() -> tuple[ReportSite, ...]:
    """Give the 17 sites of a ResNet-18 on 32×32 images; the last one is fixed."""
    shapes = [("relu", 64, 32)]
    for stage, (channels, side) in enumerate(((64, 32), (128, 16), (256, 8), (512, 4)), 1):
        shapes += [(f"layer{stage}.{b}.relu{call}", channels, side) for b in (0, 1) for call in ("", "#2")]
    sites = [
        ReportSite(
            name,
            "relu",
            (channels, side, side),
            before=channels * side * side,
            after=KEPT[index],
            granularity="element",
            degree=2,
            source=f"models/resnet.py:{40 + index}",
            input_range=(-3.1234 - index, 4.5678),
            note="4 inputs in a million lay outside the range that the fit saw" if index == 3 else "",
        )
        for index, (name, channels, side) in enumerate(shapes)
    ]
    sites[-1] = ReportSite(
        "layer4.1.relu#2", "relu", (512, 4, 4), 8_192, 8_192, "fixed", note="listed under ignored_sites"
    )
    return tuple(sites)


def make_history() -> tuple[HistoryPoint, ...]:
    """Give 60 points over two phases; the metric is evaluated at every third."""
    points = []
    for index in range(60):
        fade = np.exp(-index / 9)
        kept = int(12_900 + 536_000 * max(0.0, 1 - index / 34) ** 2) if index < 34 else 12_900
        points.append(
            HistoryPoint(
                phase="train_gates" if index < 35 else "finetune",
                step=50 * (index + 1),
                loss=float(0.35 + 1.4 * fade + 0.06 * np.sin(1.7 * index)),
                kept=kept,
                metric=float(0.941 - 0.3 * fade - 0.01 * np.cos(index)) if index % 3 == 2 else None,
            )
        )
    return tuple(points)


def make_polynomial(site: str, channel: int, bins: int = 48) -> ReportPolynomial:
    """Give a parabola near ReLU over a bell-shaped histogram."""
    edges = np.linspace(-3.2 - 0.3 * channel, 2.9 + 0.2 * channel, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    counts = (9_000 * np.exp(-((centres + 0.4) ** 2) / (0.5 + 0.1 * channel))).astype(np.int64)
    coefficients = np.array([0.0812 + 0.01 * channel, 0.5, 0.1934 - 0.012 * channel])
    return ReportPolynomial(site, "relu", channel, coefficients, edges, counts, np.maximum(edges, 0.0))


@pytest.fixture
def full() -> ReportData:
    """A page on which every section has something to show."""
    sites = make_sites()
    return ReportData(
        title="resnet18-cifar10",
        budget="21,092",
        before=sum(site.before for site in sites),
        after=sum(site.after for site in sites),
        fixed=8_192,
        unspent=0,
        sites=sites,
        history=make_history(),
        polynomials=tuple(make_polynomial(sites[2 * index].name, index) for index in range(6)),
        metric_name="accuracy",
        metrics={"ReLU model, torch": 0.9512, "compiled, torch": 0.9387, "compiled, ONNX": 0.9385},
        warnings=(
            "layer1.1.relu: 4 inputs in a million lay outside the calibrated range. Use more batches.",
            "The validation data has 500 samples: a difference below 1.9 points is noise.",
        ),
        notes=("layer1.0.relu and layer1.0.relu#2 share one module; each call has its own gates.",),
        settings="budget: '21092'\ngates:\n  granularity: element\n  hysteresis: 0.01\n",
        versions={"autorep-fx": "0.1.0", "torch": "2.9.0", "numpy": "1.26.4"},
    )


@pytest.fixture
def tiny() -> ReportData:
    """Two sites, and nothing that was trained or measured."""
    sites = (
        ReportSite("relu", "relu", (16,), 16, 4, "element", degree=2),
        ReportSite("relu#2", "relu", (8,), 8, 0, "element", degree=1),
    )
    return ReportData(title="mlp", budget="20%", before=24, after=4, fixed=0, unspent=0, sites=sites)
