"""Figures: the same text for the same data, no address, no clash of ids, colours from the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from autorep_fx.report import figures
from autorep_fx.report.data import HistoryPoint, ReportData, ReportPolynomial

FIGURES: dict[str, Callable[[ReportData], str]] = {
    "loss": lambda data: figures.loss_figure(data.history),
    "metric": lambda data: figures.metric_figure(data.history, percent=True),
    "kept": lambda data: figures.kept_figure(data.history, allowed=12_900),
    "polynomial": lambda data: figures.polynomial_figure(data.polynomials[0], prefix="p0"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_deterministic_under_any_style(full: ReportData, name: str) -> None:
    first = FIGURES[name](full)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert FIGURES[name](full) == first
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_self_contained(full: ReportData, name: str) -> None:
    svg = FIGURES[name](full)
    root = ElementTree.fromstring(svg)
    assert "://" not in svg and "xmlns" not in svg and "DOCTYPE" not in svg
    assert root.tag == "svg" and root.get("width") == "100%" and "height" not in root.attrib
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert 1.2 < width / height < 2.0
    assert not list(root.iter("style")) and not list(root.iter("metadata"))


@pytest.mark.parametrize("name", FIGURES)
def test_every_reference_has_its_id(full: ReportData, name: str) -> None:
    svg = FIGURES[name](full)
    ids = re.findall(r' id="([^"]+)"', svg)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert len(ids) == len(set(ids))
    assert used == set(ids) != set()


def test_prefix_keeps_the_ids_of_two_figures_apart(full: ReportData) -> None:
    a, b = (figures.polynomial_figure(full.polynomials[0], prefix=prefix) for prefix in ("a", "b"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (a, b)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]


@pytest.mark.parametrize("name", FIGURES)
def test_colours_and_letters_come_from_the_page(full: ReportData, name: str) -> None:
    svg = FIGURES[name](full)
    outside = re.sub(r"var\(--[a-z]+, #[0-9a-f]{6}\)", "", svg)
    assert not re.findall(r"#[0-9a-f]{6}\b", outside)
    assert "font-family" not in svg and "DejaVu" not in svg
    assert "font-size" in svg


def test_phases_are_marked_where_they_change(full: ReportData) -> None:
    one_phase = [point for point in full.history if point.phase == "train_gates"]
    dotted = "stroke-dasharray: 0.8,1.6"
    assert figures.loss_figure(full.history).count(dotted) == 1
    assert dotted not in figures.loss_figure(one_phase)


def test_budget_is_drawn_even_where_no_comparison_is_kept() -> None:
    history = [HistoryPoint("train_gates", step, 1.0, 0) for step in (1, 2)]
    svg = figures.kept_figure(history, allowed=0)
    assert ">0<" in svg and "stroke-dasharray: 4,3" in svg


def test_values_that_are_not_finite_are_left_out() -> None:
    losses = (1.0, float("nan"), float("inf"), 0.5)
    history = [HistoryPoint("train_gates", step, loss, 10) for step, loss in enumerate(losses)]
    svg = figures.loss_figure(history)
    assert "nan" not in svg and "inf" not in svg
    # One marker for each of the two finite values, beside those of the ticks.
    assert len(re.findall(r'<use href="#\S+" x="\S+" y="\S+" style="fill: var\(--accent', svg)) == 2


def test_a_single_point_is_drawn() -> None:
    history = [HistoryPoint("finetune", 7, 0.25, 10, metric=0.5)]
    for svg in (figures.loss_figure(history), figures.metric_figure(history, percent=True)):
        assert "var(--accent" in svg


@pytest.mark.parametrize("degree", [0, 1, 2, 4])
def test_polynomial_of_any_degree_and_an_empty_histogram(degree: int) -> None:
    edges = np.linspace(-1.0, 1.0, 5)
    polynomial = ReportPolynomial(
        "relu", "relu", 0, np.ones(degree + 1), edges, np.zeros(4, dtype=np.int64), np.maximum(edges, 0)
    )
    assert figures.polynomial_figure(polynomial, prefix="p").startswith("<svg ")


def test_a_channel_that_met_one_value_is_drawn() -> None:
    edges = np.array([0.5, 0.5])
    polynomial = ReportPolynomial("relu", "relu", 0, np.array([0.0, 1.0]), edges, np.array([3]), edges)
    assert "nan" not in figures.polynomial_figure(polynomial, prefix="p")
