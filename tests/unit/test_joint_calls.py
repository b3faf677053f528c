"""What a protocol runs as one call: which nodes, in which order, and what the call costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autorep_fx.cost.joint import arranged


@dataclass(frozen=True)
class Node:
    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: dict[str, Any] = field(default_factory=dict)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Node:
    return Node(operator, inputs.split(), [output], attributes)


def groups(nodes: Sequence[Node], protocol: str = "aby3", outputs: Sequence[str] = ("y",), **more: Any) -> list[Any]:
    """Outputs of the nodes of each call, in order."""
    found = arranged(nodes, ["x"], outputs, **{"protocol": protocol, "ring_bits": 64, **more})
    return [[nodes[place].outputs[0] for place in group.places] for group in found]


SITE = [
    node("Mul", "x x", "square"), node("Gather", "x at", "kept"), node("Relu", "kept", "rectified"),
    node("Mul", "rectified scale", "scaled"), node("ScatterElements", "square at scaled", "y"),
]  # fmt: skip


def test_kept_elements_are_scaled_in_the_call_of_the_squares() -> None:
    """The square waits for the comparison, whose result the other product needs."""
    assert groups(SITE) == [["kept"], ["rectified"], ["square", "scaled"], ["y"]]


def test_squares_that_open_once_stay_among_themselves() -> None:
    assert groups(SITE, "semi2k") == [["kept"], ["rectified"], ["scaled"], ["square"], ["y"]]
    squares = [node("Mul", "x x", "a"), node("Mul", "z z", "b"), node("Add", "x z", "z"), node("Add", "a b", "y")]
    assert groups([squares[2], squares[0], squares[1], squares[3]], "semi2k") == [["z"], ["a", "b"], ["y"]]


@pytest.mark.parametrize("protocol", ["", "cheetah", "delphi-gc"])
def test_other_protocols_run_every_node_alone(protocol: str) -> None:
    assert groups(SITE, protocol) == [["square"], ["kept"], ["rectified"], ["scaled"], ["y"]]


def test_comparisons_of_branches_are_one_call() -> None:
    branches = [
        node("Conv", "x v", "a"), node("Relu", "a", "b"), node("Conv", "b v", "c"), node("Relu", "c", "d"),
        node("Conv", "x w", "e"), node("Relu", "e", "f"), node("Concat", "d f", "y"),
    ]  # fmt: skip
    assert groups(branches, "semi2k") == [["a"], ["e"], ["b", "f"], ["c"], ["d"], ["y"]]


def test_public_arithmetic_is_no_call() -> None:
    """Sizes, and what is made from weights alone."""
    sizes = [
        node("Shape", "x", "s"), node("Mul", "s two", "t"), node("Mul", "v w", "u"), node("Mul", "x u", "a"),
        node("Reshape", "a t", "y"),
    ]  # fmt: skip
    assert groups(sizes) == [["s"], ["t"], ["u"], ["a"], ["y"]]


def test_integers_are_no_call_with_numbers() -> None:
    masks = [node("Cast", "x", "i"), node("Mul", "i two", "j"), node("Mul", "x w", "p"), node("Add", "p j", "y")]
    assert groups(masks, integers=["i", "j"]) == [["i"], ["j"], ["p"], ["y"]]


def test_outputs_without_a_name_are_nobodys() -> None:
    """An absent input does not wait for an absent output."""
    clipped = [Node("Clip", ["x", "", "high"], ["a"]), Node("Dropout", ["a"], ["b", ""]), node("Relu", "b", "y")]
    assert groups(clipped) == [["a"], ["b"], ["y"]]


SUM = [node("Conv", "x v", "a"), node("Conv", "x w bias", "b"), node("Add", "a b", "y")]


def test_a_sum_of_convolutions_is_one_product_where_results_are_charged() -> None:
    assert groups(SUM) == [["a", "b", "y"]]
    assert groups(SUM, "semi2k") == groups(SUM, ring_bits=32) == [["a"], ["b"], ["y"]]
    assert [group.summed for group in arranged(SUM, ["x"], ["y"], protocol="aby3", ring_bits=64)] == [True]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Conv", "x v", "a", group=2), *SUM[1:]],
        [*SUM[:2], node("Add", "a x", "y")],
        [*SUM[:2], node("Add", "a b", "z"), node("Add", "z a", "y")],
        [node("Conv", "x x", "a"), *SUM[1:]],
        [SUM[0], node("Add", "a a", "y")],
    ],
    ids=["groups", "one convolution", "read elsewhere", "a kernel that is no weight", "one twice"],
)
def test_other_sums_are_sums(nodes: list[Node]) -> None:
    assert groups(nodes) == [[one.outputs[0]] for one in nodes]


def test_a_convolution_that_is_an_output_is_made() -> None:
    assert groups(SUM, outputs=["y", "a"]) == [["a"], ["b"], ["y"]]


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes: list[Node] = []
    values = ["x", "w"]
    for i in range(draw(st.integers(1, 25))):
        operator = draw(st.sampled_from(["Relu", "Mul", "Mul", "Add", "Conv", "Shape"]))
        count = 1 if operator in ("Relu", "Shape") else 2
        inputs = [draw(st.sampled_from(values)) for _ in range(count)]
        nodes.append(Node(operator, inputs, [f"v{i}"]))
        values.append(f"v{i}")
    return nodes


@given(graphs(), st.sampled_from(["semi2k", "aby3", "cheetah"]))
def test_any_graph_runs_in_an_order_in_which_it_can(nodes: list[Node], protocol: str) -> None:
    """Every node runs once and after what it reads, also of its own call; joined nodes are of one operator."""
    made = {"x", "w"}
    seen: list[int] = []
    for group in arranged(nodes, ["x"], [nodes[-1].outputs[0]], protocol=protocol, ring_bits=64):
        parts = [nodes[place] for place in group.places]
        assert {name for part in (parts[:-1] if group.summed else parts) for name in part.inputs} <= made
        operators = [part.operator for part in parts]
        assert len(parts) == 1 or operators == ["Conv", "Conv", "Add"] or set(operators) in ({"Relu"}, {"Mul"})
        made |= {name for part in parts for name in part.outputs}
        seen += group.places
    assert sorted(seen) == list(range(len(nodes)))
