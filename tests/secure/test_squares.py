"""Squares that open their factor once: bytes, messages, and nothing that is left over for the next query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.run import run_model
from autorep_fx.runtime.secure.simulate import SimulatedSession
from autorep_fx.runtime.secure.split import split_model
from onnx_models import save

pytestmark = pytest.mark.engine
SIZES = (3, 5, 4)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """((x² + x)² + x²)²: squares of squares, and a square that is read twice."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"], name="a"), helper.make_node("Add", ["a", "x"], ["b"], name="b"),
        helper.make_node("Mul", ["b", "b"], ["c"], name="c"), helper.make_node("Add", ["c", "a"], ["d"], name="d"),
        helper.make_node("Mul", ["d", "d"], ["y"], name="e"),
    ]  # fmt: skip
    shape = ["batch", *SIZES]
    return save(tmp_path / "m.onnx", nodes, {"x": ("float32", shape)}, {"y": ("float32", shape)}, {})


def _expected(x: np.ndarray) -> np.ndarray:
    a = x.astype(np.float64) ** 2
    return np.asarray(((a + x) ** 2 + a) ** 2)


@pytest.mark.parametrize("ring_bits", [64, 128])
def test_a_square_costs_one_opening(ring_bits: int, chain: Path) -> None:
    """K bits an element and party and K bits a call, and then the truncation; one message for each."""
    session = SimulatedSession(split_model(chain), Settings("semi2k", ring_bits), timeout=60)
    rng = np.random.default_rng(0)
    for batch in (2, 2, 1, 3):  # values of other queries meet memory that was opened before
        x = rng.uniform(-1, 1, (batch, *SIZES)).astype(np.float32)
        [y], step = session.query([x])
        assert np.abs(y - _expected(x)).max() < 1e-3
        kernels, word = step.counters.kernels, ring_bits // 8
        assert kernels["mmul_aa"].bytes == 3 * 2 * word * (x.size + 1)
        assert kernels["mul_aa"].bytes == 0
        assert step.counters.bytes == kernels["mmul_aa"].bytes + kernels["trunc_a"].bytes
        assert step.counters.messages == 3 * 2 * 2


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_squares_are_predicted(protocol: str, chain: Path) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (2, *SIZES)).astype(np.float32)
    run = run_model(chain, [x], Settings(protocol), timeout=60)
    assert run.predicted_bytes == run.to_json()["measured_bytes"]
    assert run.max_error is not None and run.max_error < 1e-3


def test_other_products_open_both_factors(tmp_path: Path) -> None:
    node = helper.make_node("Mul", ["x", "w"], ["y"], name="a")
    shape = ["batch", *SIZES]
    weight = np.ones(SIZES, np.float32)
    path = save(tmp_path / "m.onnx", [node], {"x": ("float32", shape)}, {"y": ("float32", shape)}, {"w": weight})
    session = SimulatedSession(split_model(path), Settings("semi2k"), timeout=60)
    _, step = session.query([np.ones((1, *SIZES), np.float32)])
    assert step.counters.kernels["mul_aa"].bytes == 32 * 60
