"""Operations that run as one call: the numbers are the same, the messages those of one, and both are predicted."""

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


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """Two convolutions that are added; two branches of a ReLU and a product each; two squares of different shapes."""
    rng = np.random.default_rng(0)
    tensors = {
        "v": rng.uniform(-1, 1, (4, 3, 3, 3)) / 5, "bv": rng.uniform(-1, 1, 4),
        "w": rng.uniform(-1, 1, (4, 2, 1, 1)), "bw": rng.uniform(-1, 1, 4), "scale": rng.uniform(1, 2, (4, 1, 1)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "v", "bv"], ["a"], name="one/Conv", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Conv", ["z", "w", "bw"], ["b"], name="two/Conv", kernel_shape=[1, 1], strides=[2, 2]),
        helper.make_node("Add", ["a", "b"], ["s"], name="sum/Add"),
        helper.make_node("Relu", ["s"], ["r"], name="first/Relu"),
        helper.make_node("Neg", ["s"], ["n"], name="neg/Neg"),
        helper.make_node("Relu", ["n"], ["q"], name="second/Relu"),
        helper.make_node("Mul", ["r", "scale"], ["p"], name="first/Mul"),
        helper.make_node("Mul", ["q", "s"], ["t"], name="second/Mul"),
        helper.make_node("ReduceMean", ["n", "axes"], ["m"], name="mean/ReduceMean", keepdims=1),
        helper.make_node("Mul", ["n", "n"], ["d"], name="third/Mul"),
        helper.make_node("Mul", ["m", "m"], ["e"], name="fourth/Mul"),
        helper.make_node("Sum", ["p", "t", "d", "e"], ["y"], name="out/Sum"),
    ]
    weights = {name: value.astype(np.float32) for name, value in tensors.items()}
    weights["axes"] = np.array([2, 3])
    inputs = {"x": ("float32", ["batch", 3, 4, 4]), "z": ("float32", ["batch", 2, 8, 8])}
    return save(tmp_path / "m.onnx", nodes, inputs, {"y": ("float32", ["batch", 4, 4, 4])}, weights)


def _inputs(batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(batch)
    shapes = (batch, 3, 4, 4), (batch, 2, 8, 8)
    return [(rng.uniform(-1, 1, shape) / 4).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_joint_calls_are_exact_and_predicted(protocol: str, block: Path) -> None:
    """Against onnxruntime, over queries of two sizes in one session, bytes and messages as the cost model says."""
    inputs = [np.concatenate(parts) for parts in zip(_inputs(2), _inputs(1), strict=True)]
    run = run_model(block, inputs, Settings(protocol), batch=2, timeout=60, profile=True)
    assert run.max_error is not None and run.max_error < 2e-3
    assert run.predicted_bytes == run.to_json()["measured_bytes"]
    assert run.profile is not None
    rows = {(row.name, row.operator): row for row in run.profile.nodes if row.measured_bytes}
    assert all(row.predicted_bytes == row.measured_bytes for row in rows.values())
    assert all(row.predicted_messages == row.messages_of_one for row in rows.values())
    joint = {
        "semi2k": {("first/Relu", "2 Relu"), ("first/Mul", "2 Mul"), ("third/Mul", "2 Mul")},
        "aby3": {("one/Conv", "2 Conv"), ("first/Relu", "2 Relu"), ("first/Mul", "4 Mul")},
    }[protocol]
    assert {key for key in rows if key[1][0].isdigit()} == joint
    assert rows["first/Relu", "2 Relu"].comparisons == 2 * 64 * 3


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_rows_of_a_profile_keep_the_order_of_the_file(protocol: str, block: Path) -> None:
    run = run_model(block, _inputs(1), Settings(protocol), timeout=60, profile=True)
    assert run.profile is not None
    order = [node.name for node in split_model(block).program.nodes]
    places = [order.index(row.name) for row in run.profile.nodes if row.name in order]
    assert places == sorted(places)


def test_the_kernels_are_called_once(block: Path) -> None:
    """Per party: one comparison, one product of matrices, one call for all four products."""
    session = SimulatedSession(split_model(block), Settings("aby3"), timeout=60)
    _, step = session.query(_inputs(1))
    kernels = step.counters.kernels
    assert {name: kernels[name].calls for name in ("msb_a2b", "mmul_aa", "mul_aa")} == {
        "msb_a2b": 3, "mmul_aa": 3, "mul_aa": 3,
    }  # fmt: skip


def test_convolutions_of_different_sizes_are_two_products(tmp_path: Path) -> None:
    """Sizes of 1 are broadcast by a sum."""
    weights = {name: np.ones((1, 1, 1, 1), np.float32) for name in "vw"}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], name="a", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["z", "w"], ["b"], name="b", kernel_shape=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    inputs = {"x": ("float32", ["batch", 1, 3, 3]), "z": ("float32", ["batch", 1, 1, 1])}
    path = save(tmp_path / "m.onnx", nodes, inputs, {"y": ("float32", ["batch", 1, 3, 3])}, weights)
    run = run_model(path, [np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 1, 1), np.float32)], Settings("aby3"))
    assert run.max_error is not None and run.max_error < 1e-3
    assert run.predicted_bytes == run.to_json()["measured_bytes"]
