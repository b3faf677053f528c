"""The page: what it shows, what it leaves out, and what user text cannot do to it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autorep_fx.errors import OutputError
from autorep_fx.report.data import ReportData
from autorep_fx.report.html import render, write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}
NB = "\N{NO-BREAK SPACE}"


class Page(HTMLParser):
    """Checks that tags are balanced, and collects ids, attributes, texts and the rows of the site table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.table = ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "table":
            self.table = dict(attrs).get("id") or ""
        elif self.table and "tbody" in self.open:
            if tag == "tr":
                self.rows.append([])
            elif tag in ("th", "td"):
                self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.table and "tbody" in self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data

    def values(self, key: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == key]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_headline_and_facts(full: ReportData) -> None:
    page = Page(render(full))
    assert "557,056 → 21,092 comparisons" in page.text
    assert "2.4 % of the 548,864 gateable kept" in page.text.replace(NB, " ")
    assert "Budget 21,092 Unspent 0 Fixed floor 8,192" in page.text
    assert "95.12 % → 93.85 % −1.27 points" in page.text.replace(NB, " ")
    assert "compiled, torch 93.87 % −1.25 points" in page.text.replace(NB, " ")


def test_one_row_per_site_with_its_numbers(full: ReportData) -> None:
    rows = Page(render(full)).rows
    assert [row[0] for row in rows] == [site.name for site in full.sites]
    for row, site in zip(rows, full.sites, strict=True):
        assert (row[3], row[4]) == (f"{site.before:,}", f"{site.after:,}")
        assert (row[5], row[9]) == (site.granularity, site.note)
        assert row[6] == ("–" if site.degree is None else str(site.degree))
        assert row[8] == (site.source or "–")
    assert rows[3] == [
        "layer1.1.relu", "relu", "64×32×32", "65,536", "1,204", "element", "2", "−6.12 … 4.57",
        "models/resnet.py:43", "4 inputs in a million lay outside the range that the fit saw",
    ]  # fmt: skip


def test_bars_show_zero_as_no_bar_and_anything_else_as_one(full: ReportData) -> None:
    text = render(full)
    widths = re.findall(r'class="after" style="width: ([\d.]+)%"', text)
    assert len(widths) == sum(site.after > 0 for site in full.sites)
    assert len(re.findall(r'class="before" style="width: ([\d.]+)%"', text)) == len(full.sites)
    assert "65,536 → <b>0</b>" in text
    assert text.count('<li class="fixed">') == 1


@pytest.mark.parametrize("which", ["full", "tiny"])
def test_page_needs_nothing_else(which: str, request: pytest.FixtureRequest) -> None:
    text = render(request.getfixturevalue(which))
    page = Page(text)
    assert "://" not in text and "@import" not in text and "url(//" not in text
    assert not {"script", "iframe", "object", "embed", "img", "form"} & page.tags.keys()
    assert all(value.startswith(("#", "data:")) for value in page.values("href") + page.values("src"))


@pytest.mark.parametrize("which", ["full", "tiny"])
def test_page_is_accessible(which: str, request: pytest.FixtureRequest) -> None:
    page = Page(render(request.getfixturevalue(which)))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert page.tags["th"] == len(page.values("scope"))
    assert page.values("role").count("img") == page.tags["svg"] == len(page.values("aria-label"))
    assert ("html", "lang", "en") in page.attributes
    assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes
    assert page.tags["h1"] == page.tags["main"] == page.tags["title"] == 1


def test_sections_without_content_are_absent(full: ReportData, tiny: ReportData) -> None:
    always = ["Comparisons per site", "Sites"]
    assert headings(full) == [
        "2 warnings", "accuracy", *always, "Training", "Polynomials", "Notes", "Settings", "Versions",
    ]  # fmt: skip
    assert headings(tiny) == always
    assert Page(render(tiny)).tags["svg"] == 0
    assert headings(dataclasses.replace(tiny, warnings=("one",)))[0] == "1 warning"


def headings(data: ReportData) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", render(data))


def test_curves_without_a_metric_are_two(full: ReportData) -> None:
    history = tuple(dataclasses.replace(point, metric=None) for point in full.history)
    page = Page(render(dataclasses.replace(full, history=history, polynomials=())))
    assert page.tags["svg"] == 2
    assert "train_gates" in page.text and "finetune" in page.text


def test_user_text_cannot_become_markup(full: ReportData) -> None:
    evil = "<script>alert('x')</script>\"><img src=https://example.org onerror=y>"
    changed = dataclasses.replace(
        full,
        title=evil,
        budget=evil,
        sites=tuple(
            dataclasses.replace(s, name=evil, kind=evil, source=evil, note=evil, granularity=evil) for s in full.sites
        ),
        history=tuple(dataclasses.replace(point, phase=evil) for point in full.history),
        polynomials=tuple(dataclasses.replace(p, site=evil, kind=evil) for p in full.polynomials),
        metric_name=evil,
        metrics={evil: 0.9, evil + "2": 0.8},
        warnings=(evil,),
        notes=(evil,),
        settings=evil,
        versions={evil: evil},
    )
    page = Page(render(changed))
    plain = Page(render(full))
    assert page.tags.keys() == plain.tags.keys()
    assert {key for _, key, _ in page.attributes} == {key for _, key, _ in plain.attributes}
    assert page.text.count(evil) > 3 * len(full.sites)
    assert len(page.rows) == len(full.sites)


def test_metric_that_is_no_fraction_is_shown_as_it_is(full: ReportData) -> None:
    history = tuple(dataclasses.replace(p, metric=p.metric and 20 * p.metric) for p in full.history)
    metrics = {"ReLU model": 20.0, "compiled": 21.5}
    text = Page(render(dataclasses.replace(full, metrics=metrics, history=history))).text
    assert "20 → 21.5 +1.5" in text and "points" not in text.split("warnings")[0]
    small = dataclasses.replace(full, metrics={"a": 0.2, "b": 0.1}, metric_is_fraction=False)
    assert "0.2 → 0.1 −0.1" in Page(render(small)).text


def test_page_of_a_model_with_nothing_to_gate(tiny: ReportData) -> None:
    text = Page(render(dataclasses.replace(tiny, before=4, after=4, fixed=4, sites=()))).text
    assert "No comparison is gateable" in text and "Sites" not in text


def test_the_same_data_give_the_same_page(full: ReportData) -> None:
    assert render(full) == render(full)


def test_write_report_makes_folders_and_replaces(tiny: ReportData, tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    assert write_report(tiny, target) == target
    changed = dataclasses.replace(tiny, title="second")
    assert write_report(changed, str(target)) == target
    assert target.read_text(encoding="utf-8") == render(changed)
    assert list(target.parent.iterdir()) == [target]


def test_write_report_to_a_folder_or_below_a_file(tiny: ReportData, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = tmp_path / "file"
    file.write_text("kept")
    for target in (folder, file / "report.html"):
        with pytest.raises(OutputError, match="cannot be written") as caught:
            write_report(tiny, target)
        assert str(target) in caught.value.what or str(target.parent) in caught.value.what
        assert caught.value.fix
    assert sorted(tmp_path.iterdir()) == [file, folder]
    assert file.read_text() == "kept"


def test_a_failed_write_leaves_the_old_page_and_nothing_beside_it(
    tiny: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_report(tiny, tmp_path / "report.html")
    old = target.read_bytes()

    def fail(self: Path, other: Path) -> Path:
        assert self.exists(), "the new page is complete before it is renamed"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        write_report(dataclasses.replace(tiny, title="second"), target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == old


def test_text_that_is_no_unicode_does_not_cost_the_report(tiny: ReportData, tmp_path: Path) -> None:
    target = write_report(dataclasses.replace(tiny, notes=("caf\udce9.py",)), tmp_path / "report.html")
    assert "caf\\udce9.py" in target.read_text(encoding="utf-8")
