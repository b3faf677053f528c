"""The page in a browser: at the width of a desk and of a phone, it never scrolls sideways."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autorep_fx.report.data import ReportData
from autorep_fx.report.html import render
from browser import BROWSER, measure_page


@pytest.fixture
def wide(full: ReportData) -> ReportData:
    """60 sites, and names that have no place to break."""
    sites = [
        dataclasses.replace(site, name=f"backbone.body.stage_{copy}.{site.name}_" + "x" * (80 if copy else 0))
        for copy in range(4)
        for site in full.sites
    ]
    return dataclasses.replace(full, title="model_" + "y" * 120, sites=tuple(sites[:60]), settings="key: " + "z" * 300)


@pytest.mark.skipif(BROWSER is None, reason="No chromium or google-chrome binary is on PATH")
@pytest.mark.parametrize("which", ["full", "wide"])
def test_page_does_not_scroll_sideways(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    text = render(request.getfixturevalue(which)).replace("<details", "<details open")
    by_width = measure_page(text, tmp_path)
    for result in by_width.values():
        assert result["page"] <= result["window"]
        assert result["accent"], "the style sheet is in force"
        # Figures fill a column that is wide enough, with letters of at least 8 px.
        assert result["figure"] > 250 and result["letter"] >= 8
    # The table is wider than a phone, and scrolls inside its own box.
    assert by_width[390]["table"] > by_width[390]["box"]
