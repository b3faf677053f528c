"""The profile of a run: exact per operation, equal in sum to the run as one program, and where each of it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from typer.testing import CliRunner

from autorep_fx.cli import app
from autorep_fx.errors import ConfigError
from autorep_fx.runtime.secure.calls import calls_of, stated_sites
from autorep_fx.runtime.secure.node_profile import PUBLIC_NUMBERS
from autorep_fx.runtime.secure.profile import parse_profile
from autorep_fx.runtime.secure.profiled import ProfiledSession
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.run import run_model
from autorep_fx.runtime.secure.simulate import SimulatedSession
from autorep_fx.runtime.secure.split import split_model
from onnx_models import save


@pytest.mark.engine
@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_every_operation_costs_what_is_predicted(
    protocol: str, granularity: str, compiled: Callable[..., Path], x: np.ndarray
) -> None:
    """Bytes of all parties, and messages of the one that sends most; in the first query weights are opened."""
    run = run_model(compiled(granularity), [x], Settings(protocol), batch=1, timeout=60, profile=True)
    assert run.profile is not None and run.max_error is not None and run.max_error < 1e-3
    operators = set()
    for row in run.profile.nodes:
        if row.name == PUBLIC_NUMBERS:
            assert protocol == "aby3" and row.messages == row.measured_bytes // 8 == 3 * row.messages_of_one
            continue
        assert (row.name, row.measured_bytes) == (row.name, row.predicted_bytes)
        assert (row.name, row.messages_of_one) == (row.name, row.predicted_messages)
        operators |= {row.operator} if row.measured_bytes else set()
    assert operators == {"Conv", "Relu", "Mul", "MaxPool", "ReduceMean", "Gemm"}
    assert run.profile.total.measured_bytes == run.to_json()["measured_bytes"]
    first, second = run.profile.total.bytes_by_query
    assert (first > second) == (protocol == "semi2k")
    assert run.profile.total.comparisons == 2 * sum(split_model(compiled(granularity)).program.comparisons.values())


@pytest.mark.engine
@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_operations_add_up_to_the_whole_program(protocol: str, model: Path, x: np.ndarray) -> None:
    """In the first query and in a later one."""
    split, settings = split_model(model), Settings(protocol)
    whole, cut = SimulatedSession(split, settings, timeout=60), ProfiledSession(split, settings, timeout=60)
    for _ in range(2):
        [expected], one = whole.query([x])
        [found], step = cut.query([x])
        assert np.abs(expected - found).max() < 1e-4
        assert step.counters.bytes == sum(item.step.counters.bytes for item in cut.measured[-1])
        sums = [(c.bytes, c.messages) for c in (one.counters, step.counters)]
        assert sums[0] == sums[1]
        assert one.comparisons == step.comparisons
        kernels = {"msb_a2b", *(("trunc_a", "mul_aa") if protocol == "semi2k" else ("mul_a1b",))}
        for kernel in kernels:
            assert one.counters.kernels[kernel].bytes == step.counters.kernels[kernel].bytes > 0
        if protocol == "semi2k":  # public numbers cost nothing
            assert step.counters.bytes == one.counters.bytes


@pytest.mark.engine
def test_a_norm_is_one_row(tmp_path: Path) -> None:
    """It is a product and a sum in the program, and one node of the file."""
    tensors = {name: np.full(2, value, np.float32) for name, value in zip("gbmv", (2.0, 1.0, 0.5, 4.0), strict=True)}
    norm = helper.make_node("BatchNormalization", ["x", *"gbmv"], ["n"], name="bn/BatchNormalization")
    relu = helper.make_node("Relu", ["n"], ["y"], name="act/Relu")
    shape = ("float32", ["batch", 2, 3, 3])
    path = save(tmp_path / "m.onnx", [norm, relu], {"x": shape}, {"y": shape}, tensors)
    run = run_model(path, [np.ones((1, 2, 3, 3), np.float32)], Settings("semi2k"), timeout=60, profile=True)
    assert run.profile is not None
    rows = [(row.name, row.call, row.predicted_bytes, row.measured_bytes) for row in run.profile.nodes]
    assert rows == [("bn/BatchNormalization", "bn", 18 * 40, 18 * 40), ("act/Relu", "act", 18 * 144, 18 * 144)]


@pytest.mark.engine
def test_what_is_not_predicted_is_told(model: Path, x: np.ndarray) -> None:
    run = run_model(model, [x], Settings("semi2k", 128), timeout=60, profile=True)
    assert run.profile is not None and run.profile.total.predicted_bytes is None
    assert all(row.predicted_bytes is None for row in run.profile.nodes)
    assert run.profile.total.measured_bytes > 0


@pytest.mark.engine
@pytest.mark.parametrize("mode", ["plain", "execute"])
def test_only_simulated_parties_are_profiled(mode: str, model: Path, x: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="Only simulated parties"):
        run_model(model, [x], Settings("aby3"), mode=mode, profile=True)


@pytest.mark.engine
def test_the_command_writes_json_and_html(model: Path, x: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    command = ["secure", "run", str(model), "-i", str(tmp_path / "x.npy"), "--protocol", "semi2k", "--profile"]
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "p.csv")])
    assert refused.exit_code != 0 and not (tmp_path / "p.csv").exists()
    written = CliRunner().invoke(app, [*command, str(tmp_path / "p.json")])
    assert written.exit_code == 0, written.output
    value = json.loads((tmp_path / "p.json").read_text())
    assert value["total"]["measured_bytes"] == value["run"]["measured_bytes"]
    assert f"{value['total']['measured_bytes']:,}" in written.output
    assert [call["name"] for call in value["calls"] if call["site"]] == ["relu", "pool", "relu#2"]
    paged = CliRunner().invoke(app, [*command, str(tmp_path / "p.html")])
    assert paged.exit_code == 0, paged.output
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "http" not in page.replace('http-equiv="', "") and "<script" not in page
    assert "relu#2" in page and f"{value['total']['measured_bytes']:,}" in page


@pytest.mark.parametrize(
    ("names", "sites", "expected"),
    [
        (["a/Conv", "r/Mul", "r/Relu", "b/Conv", "r/Relu_1"], ["r", "r#2"], ["a", "r", "r", "b", "r#2"]),
        (["a/Conv", "r/Mul", "r/Relu", "b/Conv", "r/Relu_1"], [], ["a", "r", "r", "b", "r#2"]),
        (["r/Relu", "r/Relu_1", "b/Conv", "r/Relu_2"], ["r", "r#2", "r#3"], ["r", "r", "b", "r"]),
        (["Relu", "Mul", "b.c/Conv", "Relu_1"], ["relu"], ["(model)", "(model)", "b.c", "(model)#2"]),
    ],
    ids=["two calls", "no list", "calls that meet", "functions"],
)
def test_nodes_belong_to_calls(names: list[str], sites: list[str], expected: list[str]) -> None:
    assert calls_of(names, sites) == expected


def test_sites_are_those_of_the_file(model: Path, tmp_path: Path) -> None:
    assert stated_sites(model) == ("relu", "relu#2", "pool.max_pool2d")
    shape = {"x": ("float32", ["batch", 2])}, {"y": ("float32", ["batch", 2])}
    other = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], name="n")], *shape)
    assert stated_sites(other) == ()


def test_messages_are_told_by_run() -> None:
    line = "[x] Link details: total send bytes 8, recv bytes 8, send actions {}, recv actions 9\n"
    assert parse_profile(line.format(3) + line.format(5)).by_run == (3, 5)


def test_gathers_are_counted() -> None:
    """Their name has a space in it."""
    line = (
        "- pphlo.custom_call: spu.gather, executed 2 times, duration 0.5s, send bytes 0 recv bytes 0, send actions 0, "
        "recv actions 0"
    )
    assert parse_profile(line).operations["pphlo.custom_call: spu.gather"].calls == 2
