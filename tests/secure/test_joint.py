"""Operations that run as one call: the numbers are the same, the messages those of one, and both are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from autorep_fx.cost.joint import PART_OF_NORM
from autorep_fx.cost.onnx_count import load_model
from autorep_fx.cost.primitives import secure_work
from autorep_fx.errors import ProtocolError
from autorep_fx.runtime.secure.fixed_point import check_headroom, emulate
from autorep_fx.runtime.secure.joint import JointNode, joint_nodes
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


# What is broadcast: images of one pixel, strips, one channel.
SIZES = {
    "one pixel": ([1, 1, 3, 3], [1, 1, 1, 1], (1, 1, 1, 1), (1, 1, 1, 1), [1, 3, 3]),
    "strips": ([1, 1, 4, 4], [1, 1, 4, 4], (1, 1, 1, 4), (1, 1, 4, 1), [1, 4, 4]),
    "one channel": ([1, 1, 3, 3], [1, 1, 3, 3], (1, 1, 1, 1), (4, 1, 1, 1), [4, 3, 3]),
}


@pytest.mark.parametrize("name", SIZES)
def test_sums_that_broadcast_are_two_products(name: str, tmp_path: Path) -> None:
    """Each with its bias; as they are predicted."""
    x, z, v, w, made = SIZES[name]
    weights = {"v": np.ones(v), "w": np.ones(w), "b": np.full(v[0], 0.5), "d": np.full(w[0], 0.25)}
    nodes = [
        helper.make_node("Conv", ["x", "v", "b"], ["a"], name="a", kernel_shape=v[2:]),
        helper.make_node("Conv", ["z", "w", "d"], ["c"], name="b", kernel_shape=w[2:]),
        helper.make_node("Add", ["a", "c"], ["y"], name="sum"),
    ]
    inputs = {"x": ("float32", ["batch", *x[1:]]), "z": ("float32", ["batch", *z[1:]])}
    outputs = {"y": ("float32", ["batch", *made])}
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs, {k: t.astype(np.float32) for k, t in weights.items()})
    run = run_model(path, [np.ones(x, np.float32), np.ones(z, np.float32)], Settings("aby3"), timeout=60, profile=True)
    assert run.max_error is not None and run.max_error < 1e-3
    assert run.predicted_bytes == run.to_json()["measured_bytes"]
    assert run.profile is not None
    assert run.profile.nodes[0].predicted_messages == run.profile.nodes[0].messages_of_one == 6


def test_a_ring_is_too_small_for_a_sum_that_is_not_truncated(tmp_path: Path) -> None:
    """Each result fits 63 bits with twice 18 of fraction, their sum does not; SEMI2K truncates each by itself."""
    weights = {name: np.full((1, 1, 1, 1), 2.0**13, np.float32) for name in "vw"}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], name="a", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["x", "w"], ["c"], name="b", kernel_shape=[1, 1]),
        helper.make_node("Add", ["a", "c"], ["y"], name="sum"),
    ]
    shape = ("float32", ["batch", 1, 1, 1])
    path = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, weights)
    split, x = split_model(path), np.full((1, 1, 1, 1), 0.9 * 2.0**14, np.float32)
    check_headroom(emulate(split, [x], None, protocol="semi2k").ranges, Settings("semi2k"))
    with pytest.raises(ProtocolError, match=r"Received: sum \(-0\.8 bits"):
        check_headroom(emulate(split, [x], None, protocol="aby3").ranges, Settings("aby3"))


def test_nodes_with_one_name_are_told_apart(tmp_path: Path) -> None:
    """ONNX allows it, though onnxruntime does not; and nodes without a name."""
    weights = {name: np.full((1, 1, 1, 1), i + 1, np.float32) for i, name in enumerate("uvw")}
    nodes = [
        helper.make_node("Conv", ["x", "u"], ["a"], name="c", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["x", "v"], ["b"], name="c", kernel_shape=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["y"], name="c", kernel_shape=[1, 1]),
    ]
    shape = ("float32", ["batch", 1, 2, 2])
    path = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, weights)
    split = split_model(path)
    assert [node.name for node in split.program.nodes] == ["c", "c#2", "node_2", "c#3"]
    [y], _ = SimulatedSession(split, Settings("aby3"), timeout=60).query([np.ones((1, 1, 2, 2), np.float32)])
    assert np.abs(y - 9).max() < 1e-3


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_the_cost_model_joins_what_the_engine_joins(protocol: str, block: Path, tmp_path: Path) -> None:
    """The same calls in the same order from the file and from its public program, norms between them too."""
    model = onnx.load(str(block))
    names = "gamma", "beta", "mean", "variance"
    model.graph.node[4].CopyFrom(helper.make_node("BatchNormalization", ["s", *names], ["n"], name="norm"))
    numbers = [np.full(4, value, np.float32) for value in (2, 1, 0, 1)]
    model.graph.initializer.extend(map(numpy_helper.from_array, numbers, names))
    onnx.save(model, str(tmp_path / "m.onnx"))
    for path in (block, tmp_path / "m.onnx"):
        work = secure_work(load_model(path), 1, protocol=protocol)
        nodes = joint_nodes(split_model(path).program, Settings(protocol))
        made = {node.outputs[0].removesuffix(PART_OF_NORM): node.outputs for node in nodes}
        assert [item.outputs[0] for item in work] == list(made)
        joined = {item.outputs[0]: item.nodes for item in work if item.nodes > 1}
        assert joined == {node.outputs[0]: len(node.parts) for node in nodes if isinstance(node, JointNode)}
