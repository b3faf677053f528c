"""One count for a captured graph, its ONNX file, and a counter that knows nothing of the project."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

import autorep_fx
import independent_counter
from autorep_fx.cost import count_comparisons, count_sites
from autorep_fx.cost.fx_count import non_polynomial_name
from autorep_fx.cost.nominal import family_comparisons, per_sample
from autorep_fx.errors import ConfigError, ModelFileError
from autorep_fx.kinds import KINDS
from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.graphs import sites_of


class Branches(nn.Module):
    """Applies each function to its own multiple of the input: the exporter could merge equal branches."""

    def __init__(self, functions: dict[str, Callable[[Tensor], Any]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {name: f(x * (i + 1.5)) for i, (name, f) in enumerate(self.functions.items())}


def captured(model: nn.Module, x: Tensor) -> CapturedModule:
    module = capture_graph(model, x)
    CanonicalizePass()(module)
    return module


def export(module: nn.Module, x: Tensor, path: Path, opset: int = 20) -> Path:
    """Export with a dynamic batch, without the exporter's prints and warnings."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns when torchvision is not installed
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            result = torch.onnx.export(program, dynamo=True, opset_version=opset, external_data=False, verbose=False)
            assert result is not None
            result.save(path)
    finally:
        registration.setLevel(level)
    return path


def _lstm_cell(x: Tensor) -> Tensor:
    """The hidden state of three units after one step from zeros, with constant weights."""
    weights = (torch.ones(12, 4), torch.ones(12, 3), torch.ones(12), torch.zeros(12))
    state = torch.zeros(x.shape[0], 3)
    return torch.lstm_cell(x, (state, state), *weights)[0]


# Nominal comparisons of an input (4, 8, 6): 192 elements.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu": (F.relu, 192),
    "clip": (lambda x: F.hardtanh(x, -1, 2), 384),
    "leaky_relu": (F.leaky_relu, 192),
    "elu": (F.elu, 192),
    "silu": (F.silu, 192),
    "gelu": (F.gelu, 192),
    "mish": (F.mish, 192),
    "hardswish": (F.hardswish, 384),
    "hardsigmoid": (F.hardsigmoid, 384),
    "sigmoid": (torch.sigmoid, 192),
    "tanh": (torch.tanh, 192),
    "softplus": (F.softplus, 192),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.25, 0.1, 0.2, 0.3])), 192),
    "selu": (F.selu, 192),
    "celu": (lambda x: F.celu(x, 2.0), 192),
}
SPELLINGS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "relu6": (F.relu6, 384),
    "clamp(min=0)": (lambda x: x.clamp(min=0), 192),
    "clip(min=0)": (lambda x: x.clip(min=0), 192),
    "clamp(min=1)": (lambda x: x.clamp(min=1.0), 192),
    "clamp(max=1)": (lambda x: x.clamp(max=1.0), 192),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), 192),
    "softplus beta": (lambda x: F.softplus(x, 2.0), 192),
    "threshold": (lambda x: F.threshold(x, 1.0, 2.0), 192),
    "maximum": (lambda x: torch.maximum(x, x * 2), 192),
    "max of two": (lambda x: torch.max(x, x * 3), 192),
    "abs": (torch.abs, 192),
    "gt": (lambda x: (x > 0.5) * x, 192),
    "one slope": (lambda x: F.prelu(x, torch.tensor([0.25])), 192),
    "rrelu": (F.rrelu, 192),
    "silu by hand": (lambda x: x * torch.sigmoid(x), 192),
    "leaky by hand": (lambda x: torch.where(x > 0, x, 0.1 * x), 192),
    "eq": (lambda x: (x == 0.5) * x, 192),
    "ne": (lambda x: (x != 0.5) * x, 192),
    "isclose": (lambda x: torch.isclose(x, x * 2) * x, 4 * 192),
    "to bool": (lambda x: x.bool() * x, 192),
    "to int": (lambda x: x.long() * x, 192),
    "floor": (torch.floor, 192),
    "ceil": (torch.ceil, 192),
    "round": (torch.round, 192),
    "remainder": (lambda x: x % 0.5, 192),
    "fmod": (lambda x: torch.fmod(x, 0.5), 192),
    "trunc": (torch.trunc, 3 * 192),
    "frac": (torch.frac, 3 * 192),
    "floor division": (lambda x: x // 0.3, 192),
    "truncated division": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), 3 * 192),
    "heaviside": (lambda x: torch.heaviside(x, torch.tensor(0.5)), 2 * 192),
    "nan_to_num": (torch.nan_to_num, 2 * 192),
    "isnan": (lambda x: x.isnan() * x, 0),
    "signbit": (lambda x: torch.signbit(x) * x, 192),
    "logsigmoid": (F.logsigmoid, 192),
    "glu": (lambda x: F.glu(x, 1), 96),
    "hardshrink": (F.hardshrink, 384),
    "softshrink": (F.softshrink, 576),
    "erf": (torch.erf, 192),
}
REDUCTIONS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), 4 * 12 * 3),
    "max_pool2d padded": (lambda x: F.max_pool2d(x, 3, 2, 1), 4 * 12 * 8),
    "max_pool1d": (lambda x: F.max_pool1d(x.flatten(2), 4), 4 * 12 * 3),
    "max_pool3d": (lambda x: F.max_pool3d(x.unsqueeze(2), (1, 2, 3)), 4 * 8 * 5),
    "max_pool2d with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True), 4 * 12 * 3),
    "adaptive 1d": (lambda x: F.adaptive_max_pool1d(x.flatten(2), 3), 4 * 45),
    "adaptive 3d": (lambda x: F.adaptive_max_pool3d(x.unflatten(1, (2, 2)), (2, 2, 3)), 192 - 24),
    "maximum norm": (lambda x: torch.linalg.vector_norm(x, torch.inf, 1), 192 + 48 * 3),
    "sum norm": (lambda x: torch.linalg.vector_norm(x, 1, (1, 2)), 192),
    "cubic norm": (lambda x: torch.linalg.vector_norm(x, 3, 1), 192),
    "quartic norm": (lambda x: torch.linalg.vector_norm(x, 4, 1), 0),
    "number of entries": (lambda x: torch.linalg.vector_norm(x, 0, 1), 192),
    "cosine similarity": (lambda x: F.cosine_similarity(x, x * 2 + 1, 1), 2 * 48),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), 48 * 3),
    "lstm cell": (lambda x: _lstm_cell(x.flatten(1)[:, :4]), 5 * 3),
    "adaptive 1": (lambda x: F.adaptive_max_pool2d(x, 1), 4 * 47),
    "adaptive 2": (lambda x: F.adaptive_max_pool2d(x, 2), 4 * 44),
    "softmax 1": (lambda x: x.softmax(1), 48 * 3),
    "softmax -1": (lambda x: x.softmax(-1), 32 * 5),
    "log_softmax": (lambda x: F.log_softmax(x, 2), 24 * 7),
    "logsumexp": (lambda x: x.logsumexp(1), 48 * 3),
    "argmax": (lambda x: x.argmax(1), 48 * 3),
    "argmin": (lambda x: x.argmin(-1, keepdim=True), 32 * 5),
    "topk": (lambda x: x.topk(3, -1).values, 32 * (5 + 4 + 3)),
    "sort": (lambda x: x.sort(1).values, 48 * (3 + 2 + 1)),
    "amax": (lambda x: x.amax((2, 3)), 4 * 47),
    "amin": (lambda x: x.amin(1), 48 * 3),
    "max values": (lambda x: x.max(1).values, 48 * 3),
    "max indices": (lambda x: x.max(2).indices, 24 * 7),
    "max both": (lambda x: tuple(x.max(1)), 2 * 48 * 3),
    "aminmax": (lambda x: tuple(torch.aminmax(x, dim=1)), 2 * 48 * 3),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3]), 32 * 2),
    "none": (lambda x: F.avg_pool2d(x, 2) * torch.arange(4).clamp(1, 2).view(1, 4, 1, 1), 0),
}
GROUPS = {"activations": ACTIVATIONS, "spellings": SPELLINGS, "reductions": REDUCTIONS}
TOTALS = {group: sum(number for _, number in cases.values()) for group, cases in GROUPS.items()}


def test_every_kind_is_counted_here() -> None:
    """A new entry of the table needs a case."""
    assert set(ACTIVATIONS) == set(KINDS)


@pytest.mark.parametrize("group", GROUPS)
def test_the_captured_graph_counts_each_case(group: str) -> None:
    """Case by case, the sites of the captured graph have the nominal number, and the module's count is theirs."""
    for name, (function, expected) in GROUPS[group].items():
        module = captured(Branches({name: function}), torch.randn(2, 4, 8, 6))
        assert sum(site.comparisons for site in sites_of(module)) == expected, name
        assert count_comparisons(module) == expected, name


def outputs_of(cases: dict[str, tuple[Callable[[Tensor], Any], int]]) -> list[str]:
    """The case of each output of a graph that holds all cases."""
    return [
        name for name in cases for _ in range(2 if name in ("max both", "aminmax", "max_pool2d with indices") else 1)
    ]


@pytest.mark.parametrize(
    ("opset", "groups"), [(20, list(GROUPS)), (18, ["activations"]), (23, ["activations", "attention"])]
)
def test_three_counts_agree(opset: int, groups: list[str], tmp_path: Path) -> None:
    """All cases in one file: fx = ONNX = the independent counter = the table, in sum and case by case.

    Opset 18 has no Gelu, and 23 has an Attention operator of its own.
    """
    known = {**GROUPS, "attention": {"attention": REDUCTIONS["attention"]}}
    cases = {name: case for group in groups for name, case in known[group].items()}
    expected = {name: number for name, (_, number) in cases.items()}
    x = torch.randn(2, 4, 8, 6)
    module = captured(Branches({name: function for name, (function, _) in cases.items()}), x)
    path = export(module, x, tmp_path / "model.onnx", opset)
    names = outputs_of(cases)
    assert independent_counter.by_output(path, names, count_sites(path)) == expected
    total = sum(expected.values())
    assert (count_comparisons(module), count_comparisons(path)) == (total, total)
    if opset < 23:  # the independent counter reads the operators of the default opset
        assert independent_counter.by_output(path, names, independent_counter.by_node(path)) == expected
        assert independent_counter.count(path) == total


def test_clips_in_a_row_count_as_the_exporter_writes_them(tmp_path: Path) -> None:
    """It merges them, and so does canonicalisation."""
    clips: dict[str, Callable[[Tensor], Any]] = {
        "clip of a relu": lambda x: F.relu(x).clamp(-1, 3),
        "clamp of a relu": lambda x: F.relu(x).clamp_max(3.0),
        "relu of a clip": lambda x: F.relu(x.clamp(-1, 3)),
        "clip of a clip": lambda x: F.relu6(F.hardtanh(x, -2, 3)),
    }
    x = torch.randn(2, 4, 8, 6)
    module = captured(Branches(clips), x)
    path = export(module, x, tmp_path / "model.onnx")
    assert count_comparisons(module) == count_comparisons(path) == independent_counter.count(path) == 4 * 384


def test_uncanonical_graphs_count_alike() -> None:
    """The count of a graph does not depend on whether its spellings have been unified."""
    functions = {name: function for name, (function, _) in {**ACTIVATIONS, **SPELLINGS}.items()}
    module = capture_graph(Branches(functions), torch.randn(2, 4, 8, 6))
    assert count_comparisons(module) == TOTALS["activations"] + TOTALS["spellings"]


def test_counts_by_node_leave_out_the_others() -> None:
    """``count_sites`` names the nodes that compare, and only those."""
    module = captured(nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(2, 4, 4, 4))
    assert count_sites(module) == {"relu": 32, "max_pool2d": 24}


def test_a_module_without_a_graph_is_refused() -> None:
    """Only a captured module can be counted, and the message says how to get one."""
    with pytest.raises(ConfigError, match="capture"):
        count_comparisons(nn.ReLU())


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    """Missing, foreign and truncated files are one typed error each."""
    with pytest.raises(ModelFileError, match="There is no model file"):
        count_comparisons(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelFileError, match="not a valid ONNX model"):
        count_comparisons(tmp_path / "text.onnx")
    x = torch.randn(2, 4, 4, 4)
    path = export(captured(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), x), x, tmp_path / "model.onnx")
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFileError, match="not a valid ONNX model"):
        count_comparisons(tmp_path / "half.onnx")


def graph_file(path: Path, nodes: list[onnx.NodeProto], output: list[Any], **constants: Any) -> Path:
    """A hand-made model with one input (batch, 4, 5, 5) named x and one output named y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_lowered_elements_count_only_themselves(tmp_path: Path) -> None:
    """Of a site of 100 elements, a gather of 7 is compared: 7 comparisons, whatever is written back."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gather", ["flat", "index"], ["some"], axis=1),
        helper.make_node("Relu", ["some"], ["y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, ["batch", 7], index=np.arange(7))
    assert (count_comparisons(path), independent_counter.count(path)) == (7, 7)


def test_one_sided_and_infinite_clips(tmp_path: Path) -> None:
    """A bound that is absent or infinite costs nothing."""
    limits = {"low": np.float32(0), "high": np.float32(6), "far": np.float32(np.inf)}
    for inputs, expected in (
        (["x", "low", "high"], 200),
        (["x", "low"], 100),
        (["x", "", "high"], 100),
        (["x", "low", "far"], 100),
        (["x"], 0),
    ):
        node = helper.make_node("Clip", inputs, ["y"])
        path = graph_file(tmp_path / "m.onnx", [node], ["batch", 4, 5, 5], **limits)
        assert (count_comparisons(path), independent_counter.count(path)) == (expected, expected)


def test_a_greater_beside_a_softplus_is_counted(tmp_path: Path) -> None:
    """Only the comparison that selects within the softplus belongs to it."""
    nodes = [
        helper.make_node("Softplus", ["x"], ["soft"]),
        helper.make_node("Greater", ["x", "limit"], ["above"]),
        helper.make_node("Cast", ["above"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["soft", "number"], ["y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, ["batch", 4, 5, 5], limit=np.float32(1))
    assert (count_comparisons(path), independent_counter.count(path)) == (200, 200)


def test_a_subgraph_is_refused(tmp_path: Path) -> None:
    """How often a branch runs is not known, so nothing is counted at all."""
    inner = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "branch", [], inner)
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    path = graph_file(tmp_path / "m.onnx", [node], ["batch", 4, 5, 5], flag=np.array(True))
    with pytest.raises(ModelFileError, match="subgraph"):
        count_comparisons(path)
    with pytest.raises(ValueError, match="subgraph of the operator If"):
        independent_counter.count(path)


def test_the_independent_counter_overlooks_nothing(tmp_path: Path) -> None:
    """An operator in none of its lists is an error."""
    node = helper.make_node("Hardmax", ["x"], ["y"], axis=1)
    path = graph_file(tmp_path / "m.onnx", [node], ["batch", 4, 5, 5])
    with pytest.raises(ValueError, match="Hardmax"):
        independent_counter.count(path)


@pytest.mark.parametrize(
    ("family", "inputs", "output", "options", "expected"),
    [
        ("max_pool", (1, 4, 8, 8), (1, 4, 4, 4), {"window": 9}, 64 * 8),
        ("max", (1, 4, 8, 8), (1, 4), {}, 4 * 63),
        ("max", (1, 1), (1, 1), {}, 0),
        ("argmax", (1, 10), (1,), {"length": 10}, 9),
        ("softmax", (1, 12, 49, 49), (1, 12, 49, 49), {"length": 49}, 12 * 49 * 48),
        ("topk", (1, 5), (1, 2), {"length": 5}, 4 + 3),
        ("topk", (1, 5), (1, 5), {"length": 5}, 4 + 3 + 2 + 1),
        ("comparison", (1, 3), (1, 3), {}, 3),
    ],
)
def test_the_rules(
    family: str, inputs: tuple[int, ...], output: tuple[int, ...], options: dict[str, int], expected: int
) -> None:
    """Each family's rule, on numbers that can be checked by hand."""
    assert family_comparisons(family, inputs, output, **options) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2, 3), (2, 3)),
        (("batch", 4), (1, 4)),
        (("64*batch", 4), (64, 4)),
        (("batch*64 + 1",), (65,)),
        (("(batch*8)//2 - 1",), (3,)),
        (("unk__3", "not a size", ""), (1, 1, 1)),
    ],
)
def test_sizes_for_one_sample(sizes: tuple[object, ...], expected: tuple[int, ...]) -> None:
    """Symbols count as 1, and arithmetic with them is done."""
    assert per_sample(sizes) == expected


class _Table(nn.Module):
    """Adds a table that is computed from parameters alone, as Swin v2 computes its position bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + torch.relu(self.table).clamp(max=2.0))


def test_what_is_computed_from_parameters_alone_compares_nothing(tmp_path: Path) -> None:
    """A ReLU and a clamp on parameters are constants: no site, and no count in either graph."""
    compiled = autorep_fx.transform(_Table(), "100%", example_inputs=torch.randn(3, 5))
    assert [site.name for site in compiled.sites] == ["relu"]
    compiled.export(tmp_path / "m.onnx")
    assert compiled.comparisons == autorep_fx.count_comparisons(tmp_path / "m.onnx") == 5


NOT_POLYNOMIAL: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "exp": (torch.exp, ["exp"]),
    "logarithm": (lambda x: x.square().log1p(), ["log1p"]),
    "root": (lambda x: (x.square() + 1).rsqrt(), ["rsqrt"]),
    "division by a secret": (lambda x: x / (x.mean(1, keepdim=True) + 10), ["division"]),
    "division by a number": (lambda x: x / 3 / torch.ones_like(x), []),
    "division by a size": (lambda x: x / x.shape[0], []),
    "integer power": (lambda x: x**3, []),
    "root as a power": (lambda x: x.square() ** 0.5, ["pow"]),
    "reciprocal as a power": (lambda x: x ** (-1), ["pow"]),
    "layer_norm": (lambda x: F.layer_norm(x, (6,)), ["layer_norm"]),
    "group_norm": (lambda x: F.group_norm(x, 2), ["group_norm"]),
    "batch_norm": (lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)), []),
    "softmax": (lambda x: x.softmax(1), ["softmax"]),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), ["scaled_dot_product_attention"]),
    "Euclidean norm": (lambda x: torch.linalg.vector_norm(x, 2, 1), ["linalg_vector_norm"]),
    "maximum norm": (lambda x: torch.linalg.vector_norm(x, torch.inf, 1), []),
    "erf": (torch.erf, ["erf"]),
    "sine and cosine": (lambda x: x.sin() + x.cos(), ["sin", "cos"]),
    "gateable activations": (lambda x: F.silu(x) + F.relu(x) + torch.sigmoid(x * 2), []),
    "a gate that is declined": (lambda x: x * torch.sigmoid(x.mean((1, 2, 3))).view(-1, 1, 1, 1), ["sigmoid"]),
    "a ReLU that is declined": (lambda x: x * torch.relu(x.mean((1, 2, 3))).view(-1, 1, 1, 1), []),
    "pooling and sums": (lambda x: F.max_pool2d(x, 2).sum(1) + x.mean(), []),
    "of parameters alone": (lambda x: x / torch.ones(4, 1, 1).add(1), []),
}


@pytest.mark.parametrize("name", NOT_POLYNOMIAL)
def test_what_is_neither_polynomial_nor_a_comparison_is_named(name: str) -> None:
    """What gates do not replace, and secure protocols have to approximate otherwise."""
    function, expected = NOT_POLYNOMIAL[name]
    module = captured(Branches({name: function}), torch.randn(2, 4, 8, 6))
    assert [found for node in module.graph.nodes if (found := non_polynomial_name(node))] == expected
