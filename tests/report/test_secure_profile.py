"""The page of a secure run: what it shows, and that it fits a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autorep_fx.report.secure_profile import secure_profile_page
from browser import BROWSER, measure_page


def _row(name: str, predicted: int | None, measured: int, **others: Any) -> dict[str, Any]:
    row = {"name": name, "operator": "Relu", "call": name, "comparisons": 5, "site": False}
    row |= {"predicted_bytes": predicted, "measured_bytes": measured, "predicted_messages": 1}
    return row | {"messages_of_one": 1, "messages": 2, "seconds": 0.5, **others}


def _page(rows: list[dict[str, Any]], total: dict[str, Any]) -> str:
    settings = {"protocol": "aby3", "parties": ["client", "server", "helper"], "ring_bits": 64, "fraction_bits": 18}
    threat = {"corruption": "one party", "trust": "nobody else", "dealer": "none"}
    run = {"settings": settings, "threat_model": threat, "samples": 2, "queries": [{}], "setup": None}
    run |= {"notes": ["simulated <b>"], "leaks": ["The architecture."]}
    return secure_profile_page(run, {"nodes": rows, "calls": rows, "total": total}, title="a & b")


def test_the_page_says_what_was_predicted_and_measured() -> None:
    rows = [_row("conv", 1_000, 1_000), _row("relu#2", 2_000, 2_500, site=True), _row("add", 0, 0)]
    page = _page(rows, _row("total", 3_000, 3_500))
    assert "a &amp; b" in page and "simulated &lt;b&gt;" in page
    assert "<b>relu#2</b>" in page and "2,000 → <b>2,500</b>" in page
    assert 'class="before" style="width: 80.00%"' in page and 'class="after" style="width: 100.00%"' in page
    assert "500 bytes more" in page and "1 operations that send nothing are left out" not in page
    assert "1 operation that sends nothing is left out" in page


@pytest.mark.parametrize(("predicted", "told"), [(None, "not predicted"), (7, "exact"), (8, "1 bytes less")])
def test_how_far_the_prediction_is(predicted: int | None, told: str) -> None:
    assert told in _page([_row("relu", predicted, 7)], _row("total", predicted, 7))


@pytest.mark.skipif(BROWSER is None, reason="No chromium or google-chrome binary is on PATH")
def test_the_page_does_not_scroll_sideways(tmp_path: Path) -> None:
    rows = [_row("backbone.stage.block.relu_" + "x" * 80, 10**9, 10**9, site=True) for _ in range(30)]
    by_width = measure_page(_page(rows, _row("total", 3 * 10**10, 3 * 10**10)), tmp_path)
    for result in by_width.values():
        assert result["page"] <= result["window"]
        assert result["track"] > 200  # a bar has a line of its own on a phone
    assert by_width[390]["table"] > by_width[390]["box"]
