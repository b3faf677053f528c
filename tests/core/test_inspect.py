"""What inspect says of a model: the floor, what is not replaced, levels and ranges, as text, JSON and picture."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import ConfigError, OutputError, UnsupportedModelError
from autorep_fx.inspection import Inspection
from autorep_fx.report.site_graph_svg import site_graph_svg, write_site_graph
from autorep_fx.sites import Site, SiteGraph
from nets import seeded


class Mixed(nn.Module):
    """A pooled map, then tokens with layer norm and attention weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(self.act(self.conv(x))).flatten(2).transpose(1, 2))
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        return self.head((weights @ x).mean(1) / x.square().sum((1, 2))[:, None])


@pytest.fixture(scope="module")
def mixed() -> Inspection:
    """The mixed model on two seeded samples."""
    torch.manual_seed(0)
    return autorep_fx.inspect(Mixed().eval(), torch.randn(2, 1, 8, 8))


def test_the_floor_by_kind_and_what_is_not_replaced(mixed: Inspection) -> None:
    """4·4·4·3 of the pooling, 16 rows of 15 of the softmax; its exponentials, the norm and the division stay too."""
    assert (mixed.gateable, mixed.fixed, mixed.total) == (256, 432, 688)
    assert mixed.floor == {"softmax": 240, "max_pool2d": 192}
    assert mixed.not_replaced == {"layer_norm": 1, "softmax": 1, "division": 1}
    text = str(mixed)
    assert "floor: 432 comparisons that no gate removes, 62.8% of all" in text
    assert "  softmax: 240, 34.9%\n  max_pool2d: 192, 27.9%" in text
    assert "not replaced, besides what is compared (calls): layer_norm (1), softmax (1), division (1)" in text


def test_json_holds_everything_of_a_site(mixed: Inspection) -> None:
    """Level, depth, range, owners, groups; and it is plain JSON."""
    found = json.loads(json.dumps(mixed.to_json()))
    act, pool, softmax = found["sites"]
    assert [site["level"] for site in found["sites"]] == [1, 2, 3]
    assert (act["multiplicative_depth"], pool["multiplicative_depth"], softmax["gateable"]) == (3, 3, False)
    assert act["range"][0] < 0 < act["range"][1]
    assert pool["range"] == [0.0, act["range"][1]]
    assert act["owners"][-1].endswith("ReLU")
    reason = "matmul multiplies two values of the graph"
    assert found["channel_groups"] == [{"channels": 4, "offsets": {"act": 0}, "ties": [], "declined": reason}]
    assert found["edges"] == [["act", "pool.max_pool2d"], ["pool.max_pool2d", "softmax"]]
    assert found["floor"]["softmax"] == {"comparisons": 240, "share": pytest.approx(240 / 688)}
    assert found["not_replaced"] == {"layer_norm": 1, "softmax": 1, "division": 1}


def test_text_tells_ranges_and_tied_channels() -> None:
    """The two calls of a shared ReLU around a residual sum share their channels."""
    text = str(autorep_fx.inspect(seeded(), torch.randn(2, 1, 8, 8)))
    assert " … " in text
    assert "range: of the input, on the example inputs" in text
    assert "channels tied by add: relu, relu#2 (4 channels)" in text
    assert "channels of their own: 1 site" in text
    assert "floor: 0 comparisons that no gate removes, 0.0% of all" in text


def test_long_lists_are_shortened() -> None:
    """Three names, and how many more there are."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), *(nn.Tanh() for _ in range(5)), nn.Conv2d(2, 1, 1)).eval()
    assert "channels tied: 1, 2, 3 and 2 more (2 channels)" in str(autorep_fx.inspect(model, torch.randn(2, 1, 2, 2)))


def test_a_model_without_sites_is_told() -> None:
    """A problem instead of a division by zero."""
    found = autorep_fx.inspect(nn.Linear(3, 2), torch.randn(2, 3))
    assert (found.floor, found.share(0), found.graph.comparison_depth) == ({}, 0.0, 0)
    assert "problem: there is no activation" in str(found)


def test_every_obstacle_is_told() -> None:
    """Two recurrent layers are two obstacles."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.GRU(3, 3, batch_first=True), nn.LSTM(3, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)[0])[0]

    with pytest.raises(UnsupportedModelError) as caught:
        autorep_fx.inspect(Recurrent(), torch.randn(2, 4, 3))
    assert len(caught.value.obstacles) == 2


def _chain(count: int) -> SiteGraph:
    sites = [
        Site(f"layer.{i}.a<b>", "relu", (4, 2, 2), 1, reason="why & how" if i == 3 else None) for i in range(count)
    ]
    names = [site.name for site in sites]
    edges = [*itertools.pairwise(names), *zip(names, names[3:], strict=False)]
    return SiteGraph(sites, edges, multiplicative_depth=0)


def test_the_picture_shows_every_site_and_edge() -> None:
    """150 sites wrapped into columns: nothing overlaps, all is inside, and special letters are escaped."""
    graph = _chain(150)
    root = ElementTree.fromstring(site_graph_svg(graph, title="a & b"))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [r for r in root.iter(f"{space}rect") if r.get("rx") == "5"]
    corners = {(float(box.attrib["x"]), float(box.attrib["y"])) for box in boxes}
    assert len(corners) == 150
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert all(0 <= x <= width - 192 and 0 <= y <= height - 36 for x, y in corners)
    assert len({x for x, _ in corners}) == 6
    assert len(list(root.iter(f"{space}path"))) == graph.graph.number_of_edges()
    assert sum(box.get("fill") == "#fbe3cf" for box in boxes) == 1
    assert "layer.0.a<b>" in {text.text for text in root.iter(f"{space}text")}


def test_an_empty_picture_is_a_picture() -> None:
    """No sites: the legend alone."""
    root = ElementTree.fromstring(site_graph_svg(SiteGraph([], [], multiplicative_depth=0), title="none"))
    assert float(root.attrib["height"]) > 0


def test_a_picture_is_svg_and_nothing_else(tmp_path: Path) -> None:
    """Another suffix and a folder that is not there are typed errors, and leave no file."""
    assert write_site_graph(_chain(3), tmp_path / "graph.svg", title="t").stat().st_size
    with pytest.raises(ConfigError, match="SVG only"):
        write_site_graph(_chain(3), tmp_path / "graph.png", title="t")
    with pytest.raises(OutputError):
        write_site_graph(_chain(3), tmp_path / "none" / "graph.svg", title="t")
    assert [path.name for path in tmp_path.iterdir()] == ["graph.svg"]
