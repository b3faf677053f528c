"""What a browser says of a page, at the width of a desk and of a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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
    track: Math.min(...boxes(".track").map(box => box.width)),
    accent: getComputedStyle(root).getPropertyValue("--accent"),
  }) + "</pre>");
}
</script>
"""


def measure_page(text: str, folder: Path) -> dict[int, dict[str, Any]]:
    """What the browser says of a page, by the width of its window."""
    page = html.escape(text)
    frames = "".join(
        f'<iframe style="width: {width}px; height: 900px; border: 0" onload="measure(this)" srcdoc="{page}"></iframe>'
        for width in WIDTHS
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html><meta charset=utf-8>{MEASURE}<body>{frames}", encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    measured = [json.loads(html.unescape(text)) for text in re.findall(r"<pre>(\{.*?\})</pre>", done.stdout)]
    by_width = {result["window"]: result for result in measured}
    assert sorted(by_width) == sorted(WIDTHS)
    return by_width
