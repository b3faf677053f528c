"""Work grows linearly with the graph: counted as Python calls and visited nodes, not as seconds."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from autorep_fx.config import TransformConfig
from autorep_fx.cost import count_sites
from autorep_fx.passes.calibrate import CalibratePass
from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import export_program
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.fingerprint import fingerprint
from autorep_fx.passes.fold_batchnorm import FoldBatchnormPass
from autorep_fx.passes.fold_constants import FoldConstantsPass
from autorep_fx.passes.functionalize import FunctionalizePass
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.inline import InlinePass
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.insert_gates import InsertGatesPass
from autorep_fx.passes.lower_gates import LowerGatesPass
from autorep_fx.passes.norm_records import record_modes
from autorep_fx.passes.project_budget import ProjectBudgetPass
from autorep_fx.passes.sensitivity import output_errors
from autorep_fx.passes.site_graph import build_site_graph
from autorep_fx.passes.site_settings import SiteSettingsPass
from autorep_fx.passes.stages import check_canonical, check_captured
from autorep_fx.passes.substitute import SubstitutePass

_BLOCKS = 6
# Four times the nodes may be four times the work, and a few calls more.
_MOST = 4.2


class Block(nn.Module):
    """Something for each pass: in place, without gradients, written out by hand, gated linear, constant, foldable."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(8), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = nn.functional.glu(self.bn2(self.conv2(y)), dim=1)
        with torch.no_grad():
            half = y * 0.5
        y = self.bn3(self.shared(y * torch.sigmoid(y) + half)) * (self.scale + 1) * 0.1
        return torch.relu(x + y).clamp(max=6.0)


@dataclass(frozen=True)
class Work:
    """What a pass did.

    Attributes:
        calls: Python calls; a node that is visited is one.
        whole: How often the whole graph was checked, compiled or searched for dead code.
    """

    calls: int
    whole: int


def measure(work: Callable[[], object]) -> Work:
    """Count the calls that ``work`` makes; each item that a generator gives is one."""
    calls = whole = 0
    ends = (fx.Graph.lint.__code__, fx.GraphModule.recompile.__code__, fx.Graph.eliminate_dead_code.__code__)

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls, whole
        if event == "call":
            calls += 1
            whole += frame.f_code in ends

    gc.collect()
    gc.disable()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return Work(calls, whole)


@pytest.fixture(scope="module", autouse=True)
def _nodes_are_counted() -> Iterator[None]:
    """Iterate over a graph's nodes in Python: each node is then a call."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("__iter__", "__reversed__"):
            original = getattr(fx.graph._node_list, name)

            def visit(self: Any, original: Callable[[Any], Iterator[fx.Node]] = original) -> Iterator[fx.Node]:
                yield from original(self)

            patch.setattr(fx.graph._node_list, name, visit)
        yield


def run_all(blocks: int) -> dict[str, Work]:
    """Run all passes on a network of so many blocks."""
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(*[Block(shared) for _ in range(blocks)], nn.Flatten(), nn.Linear(64, 3)).eval()
    inputs, config = ExampleInputs.of(torch.randn(2, 4, 4, 4)), TransformConfig()
    traced = export_program(model, inputs).module(check_guards=False)
    module = CapturedModule(traced, traced.graph)
    module.meta.clear()
    module.training = False
    found: dict[str, Work] = {}

    def run(pass_: Pass, on: fx.GraphModule = module) -> None:
        found[pass_.name] = measure(lambda: pass_(on))

    def note(name: str, work: Callable[[], object]) -> None:
        found[name] = measure(work)

    run(InlinePass())
    run(FunctionalizePass())
    note("record modes", lambda: record_modes(module, dict(model.named_modules(remove_duplicate=False)), set()))
    note("check captured", lambda: check_captured(module))
    run(CanonicalizePass())
    note("check canonical", lambda: check_canonical(module))
    note("count", lambda: count_sites(module))
    note("fingerprint", lambda: fingerprint(module))
    note("site graph", lambda: build_site_graph(module))
    note("train", lambda: module.train())
    module.eval()
    run(SubstitutePass({"silu": "relu"}), copy.deepcopy(module))
    run(SiteSettingsPass(config))
    run(InsertGatesPass(config))
    run(CalibratePass(inputs))
    note("scores", lambda: output_errors(module, inputs, generator=torch.Generator()))
    run(ProjectBudgetPass(64 * blocks))
    run(FoldConstantsPass())
    run(FoldBatchnormPass())
    run(LowerGatesPass())
    return found


@pytest.fixture(scope="module")
def works() -> tuple[dict[str, Work], dict[str, Work]]:
    """What every pass does on a network, and on one of four times the nodes."""
    run_all(1)  # fills caches
    return run_all(_BLOCKS), run_all(4 * _BLOCKS)


def check_linear(small: Work, large: Work) -> None:
    """Four times the nodes are about four times the calls, and the whole graph is compiled as often as before."""
    assert large.whole == small.whole, f"the whole graph is gone over {small.whole} times, then {large.whole} times"
    assert large.calls <= _MOST * small.calls, f"{small.calls:,} calls became {large.calls:,}"


PASSES = (
    "InlinePass", "FunctionalizePass", "record modes", "check captured", "CanonicalizePass", "check canonical", "count",
    "fingerprint", "site graph", "train", "SubstitutePass", "SiteSettingsPass", "InsertGatesPass", "CalibratePass",
    "scores", "ProjectBudgetPass", "FoldConstantsPass", "FoldBatchnormPass", "LowerGatesPass",
)  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_work_is_linear_in_nodes(works: tuple[dict[str, Work], dict[str, Work]], name: str) -> None:
    """Every pass and check of the pipeline."""
    check_linear(works[0][name], works[1][name])


def test_no_pass_is_left_out(works: tuple[dict[str, Work], dict[str, Work]]) -> None:
    """What is measured is what is listed."""
    assert set(works[0]) == set(PASSES)


class _Quadratic(Pass):
    """Looks at every node for every node."""

    def call(self, module: fx.GraphModule) -> PassResult:
        for node in module.graph.nodes:
            for other in module.graph.nodes:
                if other is node:
                    break
        return PassResult(module, modified=False)


class _Recompiling(Pass):
    """Compiles the graph once per call in it."""

    def call(self, module: fx.GraphModule) -> PassResult:
        for node in module.graph.nodes:
            if node.target is torch.neg:
                module.recompile()
        return PassResult(module, modified=False)


@pytest.mark.parametrize(("planted", "text"), [(_Quadratic(), "calls became"), (_Recompiling(), "whole graph")])
def test_a_planted_quadratic_pass_is_found(planted: Pass, text: str) -> None:
    """The check fails where it should."""

    def work(nodes: int) -> Work:
        graph = fx.Graph()
        value = graph.placeholder("x")
        for _ in range(nodes):
            value = graph.call_function(torch.neg, (value,))
        graph.output(value)
        module = fx.GraphModule(nn.Module(), graph)
        return measure(lambda: planted(module))

    with pytest.raises(AssertionError, match=text):
        check_linear(work(50), work(200))
