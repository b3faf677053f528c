"""Graphs after capture and canonicalisation, compared with reviewed text; and the comparer itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import golden_graphs
import pytest
import torch
import torch.nn.functional as F
from golden_graphs import assert_golden, differences, graph_text
from torch import Tensor, fx, nn

from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import capture_graph


class Residual(nn.Module):
    """A residual block that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        z = self.bn2(self.conv2(y))
        z += y
        return self.relu(z)


class PreActivation(nn.Module):
    """A pre-activation block with one ReLU for all calls, then pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.relu, self.pool, self.head = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.relu(self.bn1(x)))
        y = x + self.relu(self.bn2(y))
        return self.head(self.pool(self.relu(y)).flatten(1))


class MultiOutput(nn.Module):
    """Two outputs, one scaled by what a block without gradients computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu6(self.conv(x))
        with torch.no_grad():
            scale = self.conv(x).clamp(min=0).amax((2, 3), keepdim=True)
        return {"features": y * scale, "logits": y.mean((2, 3)).sigmoid()}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual, "pre_activation": PreActivation, "multi_output": MultiOutput
}  # fmt: skip


def canonical(name: str) -> fx.GraphModule:
    module = capture_graph(MODELS[name](), torch.randn(2, 2, 4, 4))
    CanonicalizePass()(module)
    return module


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_the_reviewed_one(name: str) -> None:
    """Operations, arguments, edges, shapes and sites are those of the golden file."""
    assert_golden(canonical(name), name)


def test_regeneration_writes_and_skips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the variable set the file is written, and the test does not pass silently."""
    monkeypatch.setattr(golden_graphs, "FOLDER", tmp_path)
    module = canonical("residual")
    monkeypatch.setenv(golden_graphs.VARIABLE, "1")
    with pytest.raises(pytest.skip.Exception, match="written"):
        assert_golden(module, "residual")
    monkeypatch.delenv(golden_graphs.VARIABLE)
    assert (tmp_path / "residual.txt").read_text(encoding="utf-8") == graph_text(module)
    assert_golden(module, "residual")


def find(module: fx.GraphModule, name: str, call: int = 0) -> fx.Node:
    return [node for node in module.graph.nodes if str(node.target).startswith(f"aten.{name}.")][call]


def wrong_edge(module: fx.GraphModule) -> None:
    """The sum takes the input of the first ReLU in place of its output."""
    relu = find(module, "relu")
    find(module, "add").replace_input_with(relu, relu.all_input_nodes[0])


def swapped_operands(module: fx.GraphModule) -> None:
    add = find(module, "add")
    add.args = (add.args[1], add.args[0])


def extra_node(module: fx.GraphModule) -> None:
    relu = find(module, "relu")
    with module.graph.inserting_after(relu):
        extra = module.graph.call_function(torch.ops.aten.neg.default, (relu,))
    find(module, "conv2d", 1).replace_input_with(relu, extra)


def missing_node(module: fx.GraphModule) -> None:
    norm = find(module, "batch_norm", 1)
    norm.replace_all_uses_with(norm.all_input_nodes[0])
    module.graph.erase_node(norm)


def other_target(module: fx.GraphModule) -> None:
    find(module, "relu", 1).target = torch.ops.aten.sigmoid.default


def other_argument(module: fx.GraphModule) -> None:
    find(module, "conv2d").update_arg(4, [0, 0])


def other_weight(module: fx.GraphModule) -> None:
    first, second = find(module, "batch_norm"), find(module, "batch_norm", 1)
    first.update_arg(1, second.args[1])


def other_shape(module: fx.GraphModule) -> None:
    node = find(module, "relu")
    node.meta["val"] = node.meta["val"][:, :1]


def lost_site(module: fx.GraphModule) -> None:
    del find(module, "relu", 1).meta["site"]


def other_output(module: fx.GraphModule) -> None:
    [output] = [node for node in module.graph.nodes if node.op == "output"]
    output.args = ((find(module, "add"),),)


def moved_node(module: fx.GraphModule) -> None:
    """A node that depends on nothing runs later."""
    nodes = [node for node in module.graph.nodes if node.op == "get_attr" and node.users]
    nodes[1].append(nodes[0])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (wrong_edge, ["changed: add"]),
        (swapped_operands, ["changed: add"]),
        (extra_node, ["extra: neg", "changed: conv2d#2"]),
        (missing_node, ["missing: batch_norm#2", "changed: add"]),
        (other_target, ["missing: relu#2", "extra: sigmoid", "changed: output"]),
        (other_argument, ["changed: conv2d:"]),
        (other_weight, ["changed: batch_norm:"]),
        (other_shape, ["changed: relu:"]),
        (lost_site, ["changed: relu#2"]),
        (other_output, ["changed: output"]),
        (moved_node, ["moved: "]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_comparer_rejects(edit: Callable[[fx.GraphModule], None], words: list[str]) -> None:
    """One edit of a graph is found, and said in words, in both directions of the comparison."""
    expected = graph_text(canonical("residual"))
    module = canonical("residual")
    assert differences(expected, graph_text(module)) == []
    edit(module)
    found = differences(expected, graph_text(module))
    for text in words:
        assert any(difference.startswith(text) for difference in found), found
    assert differences(graph_text(module), expected)


def test_a_text_with_a_label_twice_is_no_graph() -> None:
    """The comparer refuses what it could not tell apart."""
    with pytest.raises(ValueError, match="one label"):
        differences("x: placeholder()\nx: placeholder()\n", "")
