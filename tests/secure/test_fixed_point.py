"""Fixed point, emulated: against the engine, against arithmetic by hand, and as a gate for releases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from typer.testing import CliRunner

from autorep_fx.cli import app
from autorep_fx.errors import DataError, ProtocolError
from autorep_fx.runtime.secure.fixed_point import check_headroom, choose_settings, emulate
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.run import run_model
from autorep_fx.runtime.secure.split import Split, split_model
from autorep_fx.runtime.secure.verify import verify_fixed_point
from onnx_models import save

pytest.importorskip("jax", reason="comes with the extra 'secure'")


def _linear(path: Path, weight: np.ndarray, *more: object) -> Path:
    """``y = x @ w``, and operations behind it."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h" if more else "y"], name="fc"), *more]
    inputs = {"x": ("float32", ["batch", weight.shape[0]])}
    outputs = {"y": ("float32", ["batch", weight.shape[1]])}
    return save(path, nodes, inputs, outputs, {"w": weight.astype(np.float32)})


def _split(path: Path, weight: float, *more: object) -> Split:
    return split_model(_linear(path, np.full((1, 1), weight), *more))


@pytest.mark.engine
@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_it_errs_as_the_engine_does(protocol: str, model: Path) -> None:
    """Within a few units of 2⁻¹⁸ of it, and nearer to it than to the clear model at 10 fraction bits."""
    x = np.random.default_rng(3).standard_normal((16, 1, 6, 6)).astype(np.float32)
    for bits, units in ((18, 64), (10, 64)):
        settings = Settings(protocol, 64, bits)
        engine = run_model(model, [x], settings, mode="simulate", timeout=120)
        emulated = emulate(split_model(model), [x], settings).outputs[0]
        apart = np.abs(engine.outputs[0] - emulated).max()
        assert apart < units * 2.0**-bits
        assert engine.max_error is not None
        assert apart < 3 * engine.max_error


def test_headroom_is_counted_before_truncation(tmp_path: Path) -> None:
    """3 · 5 = 15 with 2 · 8 fraction bits in 32, and 15 + 15 with 8."""
    double = helper.make_node("Add", ["h", "h"], ["y"], name="sum")
    split, settings = _split(tmp_path / "m.onnx", 5.0, double), Settings("semi2k", 32, 8)
    product, total = emulate(split, [np.full((2, 1), 3.0, np.float32)], settings).ranges
    assert (product.name, total.name) == ("fc", "sum")
    assert product.headroom(settings) == pytest.approx(31 - 16 - math.log2(15))
    assert total.headroom(settings) == pytest.approx(31 - 8 - math.log2(30))


def test_numbers_are_cut_to_the_grid(tmp_path: Path) -> None:
    """0.3 and 0.7 with 4 fraction bits are 4/16 and 11/16; their product 44/256 is 2/16."""
    split = _split(tmp_path / "m.onnx", 0.7)
    assert emulate(split, [np.full((1, 1), 0.3, np.float32)], Settings("semi2k", 32, 4)).outputs[0] == 2 / 16
    assert emulate(split, [np.full((1, 1), 0.3, np.float32)], None).outputs[0] == pytest.approx(0.21, abs=1e-7)


def test_a_mean_pays_for_its_reciprocal(tmp_path: Path) -> None:
    """1/9 with 4 fraction bits is 1/16: the mean of nine ones is 9/16."""
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"], name="pool")
    shapes = {"x": ("float32", ["batch", 1, 3, 3])}, {"y": ("float32", ["batch", 1, 1, 1])}
    split = split_model(save(tmp_path / "m.onnx", [node], *shapes))
    assert emulate(split, [np.ones((1, 1, 3, 3), np.float32)], Settings("semi2k", 32, 4)).outputs[0] == 9 / 16


def test_what_does_not_fit_wraps_and_is_refused(tmp_path: Path) -> None:
    """300 · 300 with 18 bits in 32: the emulation is as wrong as the engine would be, and no run begins."""
    split, x = _split(tmp_path / "m.onnx", 300.0), np.full((1, 1), 300.0, np.float32)
    settings = Settings("semi2k", 32, 8)
    found = emulate(split, [x], settings)
    assert found.outputs[0] == (90_000 + 2**15) % 2**16 - 2**15
    with pytest.raises(ProtocolError, match=r"1 operation\(s\) do not fit[\s\S]*fc \(-1\.5 bits"):
        check_headroom(found.ranges, settings)
    with pytest.raises(ProtocolError, match="do not fit a ring of 32 bits"):
        run_model(tmp_path / "m.onnx", [x], settings)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, (64, 20)), (1e3, (64, 20)), (1e9, (64, 15)), (1e12, (128, 20))])
def test_the_smaller_ring_that_fits_is_chosen(weight: float, expected: tuple[int, int], tmp_path: Path) -> None:
    """Of 64 and 128 bits, with 12 to 20 fraction bits and 2 bits to spare."""
    ranges = emulate(_split(tmp_path / "m.onnx", weight), [np.ones((1, 1), np.float32)], None).ranges
    chosen = choose_settings(ranges, "semi2k")
    assert (chosen.ring_bits, chosen.fraction_bits) == expected
    check_headroom(ranges, chosen, bits=2)


def test_no_ring_is_large_enough(tmp_path: Path) -> None:
    ranges = emulate(_split(tmp_path / "m.onnx", 1e31), [np.ones((1, 1), np.float32)], None).ranges
    with pytest.raises(ProtocolError, match=r"No ring[\s\S]*fc reaches 1e\+31"):
        choose_settings(ranges, "semi2k")


def test_flips_are_named(tmp_path: Path) -> None:
    """Scores 2⁻¹³ apart are equal with 12 fraction bits, and the first of equals wins."""
    path = _linear(tmp_path / "m.onnx", np.array([[1.0, 1.0 + 2.0**-13], [1.0, 2.0]]))
    x = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    found = verify_fixed_point(path, [x], np.array([1, 1, 0]), Settings("semi2k", 64, 12), max_drop=0.5)
    [flip] = found.flips
    assert (flip.sample, flip.clear, flip.fixed) == (0, 1, 0)
    assert flip.margin == pytest.approx(2.0**-13, rel=1e-3)
    assert (found.accuracy_clear, found.accuracy_fixed) == (1.0, pytest.approx(2 / 3))
    assert found.failures == ("1 of 3 samples change their class, more than 1.00%",)
    assert not verify_fixed_point(path, [x], settings=Settings("semi2k", 64, 18)).failures


def test_samples_that_are_not_finite_are_refused_by_position(tmp_path: Path) -> None:
    """Before any work, in every mode: one of them would spoil the ranges of all."""
    path = _linear(tmp_path / "m.onnx", np.eye(2))
    x = np.ones((100, 2), np.float32)
    x[70, 1], x[71, 0] = np.nan, np.inf
    with pytest.raises(DataError, match="'x' is not finite at sample 70, 71 of the query"):
        verify_fixed_point(path, [x], settings=Settings("semi2k"))
    for mode in ("plain", "simulate"):
        with pytest.raises(DataError, match="not finite at sample 70, 71"):
            run_model(path, [x], Settings("semi2k"), mode=mode)


def test_the_gate_has_an_exit_code(model: Path, tmp_path: Path) -> None:
    """0 with the settings that it chooses, 1 where accuracy, classes or headroom are not enough; JSON in both cases."""
    x = np.random.default_rng(0).standard_normal((50, 1, 6, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = ["secure", "verify", str(model), "-i", str(tmp_path / "x.npy"), "--json", str(tmp_path / "r.json")]
    passed = CliRunner().invoke(app, command)
    assert passed.exit_code == 0, passed.output
    assert "May be released, to be run with --ring-bits 64 --fraction-bits 20." in passed.output
    value = json.loads((tmp_path / "r.json").read_text())
    assert value["passed"] and value["samples"] == 50 and value["settings"]["fraction_bits"] >= 12
    headrooms = [item["headroom"] for item in value["operations"]]
    assert headrooms == sorted(headrooms) and headrooms[0] >= 2
    failed = CliRunner().invoke(app, [*command, "--ring-bits", "64", "--headroom", "60"])
    assert failed.exit_code == 1 and "bits of headroom, not 60" in failed.output
    assert json.loads((tmp_path / "r.json").read_text())["failures"]


def test_what_cannot_be_judged_is_refused(model: Path) -> None:
    x = np.zeros((4, 1, 6, 6), np.float32)
    with pytest.raises(DataError, match="labels do not fit"):
        verify_fixed_point(model, [x], np.zeros(3, np.int64), Settings("semi2k"))
