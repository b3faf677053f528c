"""Draw one matplotlib axes as an inline SVG that takes its colours and fonts from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, Final
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["ACCENT", "BAND", "FILL", "GRID", "INK", "MUTED", "draw"]

# Matplotlib only takes fixed colours, but a page has a light and a dark theme. Each role is drawn in a
# placeholder colour, which `_themed` replaces by a CSS variable of the page. Black is no placeholder:
# the SVG backend leaves it out as the default.
INK: Final = "#010101"
MUTED: Final = "#020202"
GRID: Final = "#030303"
ACCENT: Final = "#040404"
FILL: Final = "#050505"
BAND: Final = "#060606"

_THEME: Final = {
    INK: "var(--ink, #1d2430)",
    MUTED: "var(--muted, #5b6575)",
    GRID: "var(--grid, #d9dee6)",
    ACCENT: "var(--accent, #1f6f8b)",
    FILL: "var(--fill, #b9c6d6)",
    BAND: "var(--band, #eef1f5)",
}

# `Any`, because matplotlib names its settings in its types only in newer releases.
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.size": 8.0,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.6,
}


def draw(prefix: str, plot: Callable[[Axes], None], *, width: float = 3.6, height: float = 2.25) -> str:
    """Return what ``plot`` draws on an empty axes as an ``<svg>`` element.

    The same drawing gives the same text, whatever style the caller has set for matplotlib.

    Args:
        prefix: Start of all ids in the element; unique on a page.
        plot: Draws on the axes that it is given, in the colours of this module.
        width: Width in inches; with ``height`` it sets the aspect ratio and the size of the letters. On the
            page the element is as wide as its column.
        height: Height in inches.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        plot(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg")
    return _inline(stream.getvalue(), prefix)


def _inline(document: str, prefix: str) -> str:
    """Turn an SVG document into an element for HTML: no addresses, no fonts, no clash of ids."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        # HTML knows SVG elements by their plain names; a namespace would be written out as an address.
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        if "style" in element.attrib:
            element.set("style", _themed(element.attrib["style"], is_text=element.tag == "text"))
    _rename_ids(root, prefix)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": "100%",
        "aria-hidden": "true",
        "focusable": "false",
        # The backend says this in a style sheet for `*`, which would reach the rest of the page.
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")).strip()


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _themed(style: str, *, is_text: bool) -> str:
    for placeholder, variable in _THEME.items():
        style = style.replace(placeholder, variable)
    if is_text:
        # Letters take the page's font; only their size and anchor come from the drawing.
        size = re.search(r"[\d.]+px", style)
        kept = [part.strip() for part in style.split(";") if part.strip() and "font" not in part]
        style = "; ".join(kept + ([f"font-size: {size.group()}"] if size else []))
    return style


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Drop the ids that nothing refers to and number the others, because the backend's are random."""
    names: dict[str, str] = {}
    for element in root.iter():
        for value in element.attrib.values():
            for used in re.findall(r"^#(\S+)$|url\(#([^)]+)\)", value):
                names.setdefault(used[0] or used[1], f"{prefix}-{len(names)}")
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                del element.attrib["id"]
                if value in names:
                    element.set("id", names[value])
            else:
                element.set(key, re.sub(r"(^|url\()#([^)\s]+)", lambda m: _reference(m, names), value))


def _reference(match: re.Match[str], names: dict[str, str]) -> str:
    return f"{match[1]}#{names[match[2]]}" if match[2] in names else match[0]
