"""Two processes: the same plan in both, and what one process makes of the same batches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from autorep_fx.errors import DeviceError
from autorep_fx.training.fabric import make_fabric
from two_processes import CASES, FAILURES, run

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)  # fmt: skip
TESTS = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes found, by case; all cases in one start of torchrun."""
    return _launch(TORCHRUN, CASES, tmp_path_factory.mktemp("two"))


def _launch(launcher: list[str], cases: Iterable[str], folder: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [*launcher, str(TESTS / "two_processes.py"), *cases, str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1)]


def _assert_equal(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", CASES)
def test_both_processes_have_the_same_result(found: list[dict[str, Any]], case: str) -> None:
    """Plan and weights, bit for bit, with batch norm too."""
    first, second = (each[case] for each in found)
    assert first["digest"] == second["digest"]
    _assert_equal(first["weights"], second["weights"], 0)


@pytest.mark.parametrize("case", [case for case in CASES if case != "norm"])
def test_two_processes_compute_what_one_does(found: list[dict[str, Any]], case: str) -> None:
    """On the same batches of 7 samples, up to rounding in float64; where there are norms, with sync_norms."""
    alone, together = run(case), found[0][case]
    for key in ("weights", "plan"):
        _assert_equal(alone.get(key, {}), together.get(key, {}), 1e-9)


FABRIC = Path(sys.executable).with_name("fabric")


@pytest.mark.parametrize("case", FAILURES)
def test_all_processes_stop_with_the_reason(case: str, tmp_path: Path) -> None:
    """A loss that is NaN in one of them, and a batch that is too small for both."""
    errors = [each[case]["error"] for each in _launch(TORCHRUN, [case], tmp_path)]
    if case == "nan":
        assert all(error.startswith("NonFiniteError: The loss is ") for error in errors)
        assert "in another process" in errors[0]
        assert "The loss is nan at train_gates" in errors[1]
    else:
        assert all("1 samples, 2 processes" in error for error in errors)


@pytest.mark.skipif(not FABRIC.exists(), reason="the command fabric is not installed beside this Python")
def test_fabric_run_starts_the_same(found: list[dict[str, Any]], tmp_path: Path) -> None:
    """Lightning's own launcher, which has set up the processes before the trainer asks for them."""
    launched = _launch([str(FABRIC), "run", "--accelerator", "cpu", "--devices", "2"], ["plain"], tmp_path)
    for rank, result in enumerate(launched):
        _assert_equal(result["plain"]["weights"], found[rank]["plain"]["weights"], 0)


def test_what_fabric_run_contradicts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_CLI_USED", "1")
    monkeypatch.setenv("LT_PRECISION", "bf16-mixed")
    with pytest.raises(DeviceError, match="conflicts with the value `--precision=bf16-mixed`"):
        make_fabric("cpu")


def test_without_sync_norms_the_statistics_are_those_of_each_process(found: list[dict[str, Any]]) -> None:
    """The option is what makes the difference."""
    own, synchronised = (found[0][case]["weights"] for case in ("norm", "synchronised"))
    assert any(not torch.allclose(value, synchronised[name], rtol=1e-6) for name, value in own.items())
