"""The site graph as one SVG file: boxes by level, wrapped into columns, fixed sites in another colour."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from autorep_fx.errors import ConfigError
from autorep_fx.files import write_text
from autorep_fx.sites import Site, SiteGraph

__all__ = ["check_svg", "site_graph_svg", "write_site_graph"]

_BOX = (192, 36)
_GAP = (14, 16)  # between boxes of one level, and between levels
_GUTTER = 66  # beside each column: level numbers, and edges that skip levels
_MARGIN = 20
_HEADER = 64
_LEVELS_PER_COLUMN = 26
_NARROWEST = 720  # room for the legend
_NAME_LETTERS = 26
_GATEABLE, _FIXED = ("#dbe8f5", "#3a6ea5"), ("#fbe3cf", "#c26a1d")
_HALO = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'  # keeps numbers readable on top of edges
_INK, _MUTED, _EDGE = "#1d2430", "#5b6575", "#7c8797"


@dataclass(frozen=True)
class _Place:
    """Left, top and column of a box."""

    x: float
    y: float
    column: int

    @property
    def middle(self) -> float:
        return self.x + _BOX[0] / 2


def check_svg(path: Path) -> None:
    """Check that a picture is asked for as SVG.

    Raises:
        ConfigError: The suffix is another.
    """
    if path.suffix.lower() != ".svg":
        raise ConfigError("The site graph is drawn as SVG only.", received=str(path), fix="Name the file NAME.svg.")


def write_site_graph(graph: SiteGraph, path: Path, *, title: str) -> Path:
    """Draw the graph into an SVG file.

    Raises:
        ConfigError: The file's suffix is not ``.svg``.
        OutputError: It cannot be written.
    """
    check_svg(path)
    return write_text(path, site_graph_svg(graph, title=title))


def site_graph_svg(graph: SiteGraph, *, title: str) -> str:
    """The graph as an SVG document.

    Levels run downwards and go on at the top of the next column; an edge leads from a site to the next ones that read
    its values.

    Args:
        graph: Sites and their dependence.
        title: Heading, such as the model's name.
    """
    places, starts, (width, height) = _layout(graph)
    edges = [_edge(places[one], places[other]) for one, other in graph.graph.edges]
    levels = _level_numbers(graph, places, starts)
    boxes = [_box(site, places[site.name]) for site in graph.sites.values()]
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *_header(graph, title),
            f'<g fill="none" stroke="{_EDGE}" stroke-width="1.2" stroke-opacity="0.75">', *edges, "</g>",
            f'<g fill="{_MUTED}" font-size="9" text-anchor="end" {_HALO}>', *levels, "</g>",
            *boxes,
            "</svg>\n",
        ]
    )  # fmt: skip


def _layout(graph: SiteGraph) -> tuple[dict[str, _Place], list[float], tuple[float, float]]:
    """Places by site, the left edge of each column, and the size of the picture."""
    rows: dict[int, list[str]] = defaultdict(list)
    for name, level in graph.levels.items():
        rows[level].append(name)
    columns = range(-(-graph.comparison_depth // _LEVELS_PER_COLUMN))
    places: dict[str, _Place] = {}
    starts: list[float] = []
    left = float(_MARGIN)
    for column in columns:
        levels = range(column * _LEVELS_PER_COLUMN + 1, (column + 1) * _LEVELS_PER_COLUMN + 1)
        widest = max(len(rows[level]) for level in levels)
        inner = widest * _BOX[0] + (widest - 1) * _GAP[0]
        starts.append(left + _GUTTER / 2)
        for row, level in enumerate(levels):
            taken = len(rows[level]) * (_BOX[0] + _GAP[0]) - _GAP[0]
            x = starts[-1] + (inner - taken) / 2
            for name in rows[level]:
                places[name] = _Place(x, _HEADER + row * (_BOX[1] + _GAP[1]), column)
                x += _BOX[0] + _GAP[0]
        left += inner + 2 * _GUTTER
    deepest = min(graph.comparison_depth, _LEVELS_PER_COLUMN)
    return places, starts, (max(left + _MARGIN, float(_NARROWEST)), _HEADER + deepest * (_BOX[1] + _GAP[1]) + _MARGIN)


def _edge(one: _Place, other: _Place) -> str:
    """Downwards to the next level; around the boxes in between; or over to the next column."""
    top, bottom = one.y + _BOX[1], other.y
    if one.column == other.column and bottom - top <= _GAP[1]:
        half = (top + bottom) / 2
        return _curve((one.middle, top), (one.middle, half), (other.middle, half), (other.middle, bottom))
    x, y, target = one.x + _BOX[0], one.y + _BOX[1] / 2, other.y + _BOX[1] / 2
    if one.column != other.column:
        bend = max((other.x - x) / 2, 20)
        return _curve((x, y), (x + bend, y), (other.x - bend, target), (other.x, target))
    end = other.x + _BOX[0]
    out = max(x, end) + min(14 + 0.06 * (target - y), _GUTTER - 10)
    return _curve((x, y), (out, y), (out, target), (end, target))


def _curve(*points: tuple[float, float]) -> str:
    start, *rest = (f"{x:.0f} {y:.0f}" for x, y in points)
    return f'<path d="M{start}C{" ".join(rest)}"/>'


def _level_numbers(graph: SiteGraph, places: dict[str, _Place], starts: list[float]) -> list[str]:
    heights = {level: places[name] for name, level in graph.levels.items()}
    return [
        f'<text x="{starts[place.column] - 8:.0f}" y="{place.y + _BOX[1] / 2 + 3:.0f}">{level}</text>'
        for level, place in heights.items()
    ]


def _box(site: Site, place: _Place) -> str:
    fill, stroke = _GATEABLE if site.gateable else _FIXED
    name = site.name if len(site.name) <= _NAME_LETTERS else "…" + site.name[1 - _NAME_LETTERS :]
    shape = "×".join(map(str, site.shape))
    notes = [site.name, f"{site.kind}, {shape}", f"{site.comparisons:,} comparisons", site.source, site.reason]
    tooltip = escape("\n".join(note for note in notes if note))
    return (
        f"<g><title>{tooltip}</title>"
        f'<rect x="{place.x:.0f}" y="{place.y:.0f}" width="{_BOX[0]}" height="{_BOX[1]}" rx="5" fill="{fill}" '
        f'stroke="{stroke}"/>'
        f'<text x="{place.middle:.0f}" y="{place.y + 15:.0f}" font-size="11" font-weight="600" text-anchor="middle" '
        f'fill="{_INK}">{escape(name)}</text>'
        f'<text x="{place.middle:.0f}" y="{place.y + 28:.0f}" font-size="9.5" text-anchor="middle" '
        f'fill="{_MUTED}">{escape(site.kind)} · {site.comparisons:,}</text></g>'
    )


def _header(graph: SiteGraph, title: str) -> list[str]:
    gateable = sum(site.comparisons for site in graph.sites.values() if site.gateable)
    fixed = sum(site.comparisons for site in graph.sites.values() if not site.gateable)
    heading = f"{title}: {len(graph.sites)} sites, {gateable + fixed:,} comparisons, {graph.comparison_depth} levels"
    legend = [(_GATEABLE, f"gateable: {gateable:,}"), (_FIXED, f"fixed: {fixed:,}")]
    parts = [f'<text x="{_MARGIN}" y="24" font-size="14" font-weight="600" fill="{_INK}">{escape(heading)}</text>']
    x = _MARGIN
    for (fill, stroke), text in legend:
        parts.append(f'<rect x="{x}" y="36" width="14" height="12" rx="3" fill="{fill}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x + 20}" y="46" font-size="11" fill="{_INK}">{text}</text>')
        x += 190
    parts.append(
        f'<text x="{x}" y="46" font-size="11" fill="{_MUTED}">kind · comparisons; numbers on the left: levels</text>'
    )
    return parts
