"""The page in a browser: at the width of a desk and of a phone, it never scrolls sideways."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from autorep_fx.report.data import ReportData
from autorep_fx.report.html import render

WIDTHS = (1280, 390)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1400,1000",
    "--dump-dom",
)
# A window cannot be as narrow as a phone, but a frame can; and its `srcdoc` may be measured from outside.
MEASURE = """
<script>
function measure(frame) {
  const root = frame.contentDocument.documentElement;
  const table = frame.contentDocument.getElementById("site-table");
  const boxes = what => [...root.querySelectorAll(what)].map(element => element.getBoundingClientRect());
  document.body.insertAdjacentHTML("beforeend", "<pre>" + JSON.stringify({
    page: root.scrollWidth, window: root.clientWidth,
    table: table.scrollWidth, box: table.parentElement.clientWidth,
    figure: Math.min(...boxes("svg").map(box => box.width)),
    letter: Math.min(...boxes("svg text").map(box => box.height)),
    accent: getComputedStyle(root).getPropertyValue("--accent"),
  }) + "</pre>");
}
</script>
"""


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
    page = html.escape(render(request.getfixturevalue(which)).replace("<details", "<details open"))
    frames = "".join(
        f'<iframe style="width: {width}px; height: 900px; border: 0" onload="measure(this)" srcdoc="{page}"></iframe>'
        for width in WIDTHS
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html><meta charset=utf-8>{MEASURE}<body>{frames}", encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    measured = [json.loads(html.unescape(text)) for text in re.findall(r"<pre>(\{.*?\})</pre>", done.stdout)]
    by_width = {result["window"]: result for result in measured}
    assert sorted(by_width) == sorted(WIDTHS)
    for result in by_width.values():
        assert result["page"] <= result["window"]
        assert result["accent"], "the style sheet is in force"
        # Figures fill a column that is wide enough, with letters of at least 8 px.
        assert result["figure"] > 250 and result["letter"] >= 8
    # The table is wider than a phone, and scrolls inside its own box.
    assert by_width[390]["table"] > by_width[390]["box"]
