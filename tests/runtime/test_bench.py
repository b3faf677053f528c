"""Measurements of two models: the order of the runs, their spread, memory, operators, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autorep_fx.cli import app
from autorep_fx.errors import ConfigError, DataError, DeviceError, ModelFileError
from autorep_fx.runtime.bench import Spread, alternate, bench
from autorep_fx.runtime.op_profile import OUTSIDE, read_profile
from autorep_fx.runtime.peak_memory import peak_memory
from onnx_models import relu_net


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ReLU network, and the same with a polynomial."""
    folder = tmp_path_factory.mktemp("bench")
    return relu_net(folder / "relu.onnx"), relu_net(folder / "poly.onnx", polynomial=True)


def test_runs_alternate_in_both_directions() -> None:
    """What comes first has no advantage; warm-up runs are not measured."""
    calls: list[str] = []
    seconds = alternate([lambda: calls.append("A"), lambda: calls.append("B")], 4, 2)
    assert "".join(calls) == "AABB" + "ABBAABBA"
    assert [len(times) for times in seconds] == [4, 4]


def test_the_spread_is_that_of_the_quartiles() -> None:
    """By hand."""
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_a_larger_model_is_slower(tmp_path: Path) -> None:
    """The ratio is of the second over the first, with the number of runs; nothing else is measured unasked."""
    small, large = relu_net(tmp_path / "s.onnx", width=8), relu_net(tmp_path / "l.onnx", width=20000)
    found = bench(small, large, batches=[16], runs=7, warm_up=1, threads=1, memory=False, profile=False)
    [row] = found.batches
    assert row.ratio.n == row.seconds[0].n == 7
    assert row.ratio.lower > 2
    assert row.seconds[1].median > row.seconds[0].median
    assert (row.memory, row.operators) == (None, ())
    assert found.machine["versions"]["numpy"] == np.__version__
    assert found.machine["cores"] >= 1


def test_the_profile_shows_where_the_difference_is(pair: tuple[Path, Path]) -> None:
    """Nodes and time by operator of either model, the largest difference first."""
    found = bench(*pair, batches=[4], runs=3, warm_up=1, threads=1, memory=False)
    rows = {a.operator: (a, b) for a, b in found.batches[0].operators}
    assert [(x.nodes, x.seconds > 0) for x in rows["Relu"]] == [(1, True), (0, False)]
    assert [(x.nodes, x.seconds > 0) for x in rows["Mul"]] == [(0, False), (3, True)]
    assert [x.nodes for x in rows["MatMul"]] == [2, 2]
    assert OUTSIDE in rows
    differences = [abs(b.seconds - a.seconds) for a, b in found.batches[0].operators]
    assert differences == sorted(differences, reverse=True)


def test_a_profile_is_read_by_run(tmp_path: Path) -> None:
    """By hand: warm-up runs, fences and other events are left out, and the rest of a run is told."""

    def event(name: str, ts: int, dur: int, operator: str = "") -> dict[str, object]:
        args = {"op_name": operator} if operator else {}
        return {"cat": "Node" if operator else "Session", "name": name, "ts": ts, "dur": dur, "args": args}

    events = [
        event("model_run", 0, 100), event("a_kernel_time", 10, 50, "Mul"),
        event("model_run", 200, 40), event("a_kernel_time", 205, 10, "Mul"), event("b_kernel_time", 220, 10, "Mul"),
        event("b_fence_before", 219, 1, "Mul"), event("SequentialExecutor::Execute", 201, 38),
        event("model_run", 300, 60), event("a_kernel_time", 310, 20, "Mul"), event("b_kernel_time", 340, 20, "Mul"),
    ]  # fmt: skip
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    found = read_profile(path, 2)
    assert (found["Mul"].nodes, found["Mul"].seconds) == (2, pytest.approx(30e-6))
    assert found[OUTSIDE].seconds == pytest.approx(20e-6)
    with pytest.raises(DataError, match="3 of 4"):
        read_profile(path, 4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from Linux's accounts")
def test_peak_memory_is_the_models_own(tmp_path: Path) -> None:
    """64 MB of weights are seen, and the 600 MB of this process are not."""
    ballast = np.ones(75_000_000)
    small, large = relu_net(tmp_path / "s.onnx"), relu_net(tmp_path / "l.onnx", width=2_300_000)
    a, b = (peak_memory(path, batch=1, threads=1, runs=1) for path in (small, large))
    del ballast
    assert a.before is not None
    assert a.loading is not None
    assert b.loading is not None
    assert a.loading < 500e6
    assert b.loading > a.loading + 64e6
    if a.running is not None and b.running is not None:
        assert b.running > a.running + 64e6


def test_what_cannot_be_measured_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Too few runs; other inputs; another batch than the model's; a device that is not there; a damaged file."""
    with pytest.raises(ConfigError, match="1 runs"):
        bench(*pair, runs=1)
    with pytest.raises(ConfigError, match=r"batches \[0\]"):
        bench(*pair, batches=[0])
    fixed = relu_net(tmp_path / "fixed.onnx", batch=2)
    with pytest.raises(ModelFileError, match="do not take the same inputs"):
        bench(pair[0], fixed)
    with pytest.raises(ModelFileError, match=r"fixed batch[\s\S]*batch 32, where it takes 2"):
        bench(fixed, fixed, batches=[2, 32], runs=2)
    with pytest.raises(DeviceError, match="no such device"):
        bench(*pair, device="tpu")  # type: ignore[arg-type]
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(ModelFileError, match="not a valid ONNX"):
        bench(pair[0], tmp_path / "bad.onnx")
    with pytest.raises(ModelFileError, match=r"ended with code 1[\s\S]*no-memory"):
        peak_memory(tmp_path / "bad.onnx", batch=1)


def test_a_float16_model_is_measured_against_a_float32_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Their inputs differ in type alone."""
    half = relu_net(tmp_path / "half.onnx", dtype="float16")
    found = bench(pair[0], half, batches=[1], runs=2, warm_up=0, memory=False, profile=False)
    assert found.batches[0].ratio.median > 0


def test_the_command_prints_a_table_and_json(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The same figures either way: batches, n, quartiles, operators; and what they were measured on."""
    arguments = ["bench", *map(str, pair), "--batch", "1,3", "--runs", "3", "--warm-up", "1", "--threads", "1"]
    printed = CliRunner().invoke(app, [*arguments, "--no-memory"])
    assert printed.exit_code == 0, printed.output
    for text in ("B/A", "quartiles", "Operators at batch 3", "Relu", "onnxruntime", "cores", "on cpu, 1 threads"):
        assert text in printed.output
    result = CliRunner().invoke(app, [*arguments, "--json", "--no-profile", "--batch", "3"])
    found = json.loads(result.stdout)
    assert [row["batch"] for row in found["batches"]] == [3]
    row = found["batches"][0]
    assert len(row["memory"]) == 2
    assert row["ratio"]["lower"] <= row["ratio"]["median"] <= row["ratio"]["upper"]
    assert CliRunner().invoke(app, [*arguments, "--batch", "many"]).exit_code == 2
