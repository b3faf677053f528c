"""The JAX program: equal to onnxruntime for every operator, and complete about what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from autorep_fx.errors import DataError, SecureProgramError
from autorep_fx.runtime.secure.plain import run_plain
from autorep_fx.runtime.secure.split import split_model
from onnx_models import save

pytestmark = pytest.mark.engine


def _reference(path: Path, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def _check(path: Path, x: np.ndarray) -> None:
    split = split_model(path)
    outputs = run_plain(split, [x]).outputs
    for found, expected in zip(outputs, _reference(path, x), strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("granularity", ["element", "channel"])
@pytest.mark.parametrize("batch", [1, 3])
def test_compiled_models_equal_onnxruntime(granularity: str, batch: int, compiled: Callable[..., Path]) -> None:
    _check(
        compiled(granularity),
        np.random.default_rng(0).standard_normal((batch, 1, 6, 6)).astype(np.float32),
    )


def _weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# Name → operator, further inputs, attributes, shape of one sample.
CASES: dict[str, tuple[str, list[np.ndarray | None], dict[str, Any], tuple[int, ...]]] = {
    "conv strided": ("Conv", [_weight(6, 4, 3, 3), _weight(6)], {"strides": [2, 1], "pads": [1, 0, 2, 1]}, (4, 7, 6)),
    "conv dilated": ("Conv", [_weight(6, 4, 3, 2)], {"dilations": [2, 3]}, (4, 8, 8)),
    "conv grouped": ("Conv", [_weight(6, 2, 3, 3), _weight(6)], {"group": 2, "pads": [1, 1, 1, 1]}, (4, 5, 5)),
    "conv depthwise": ("Conv", [_weight(4, 1, 3, 3)], {"group": 4}, (4, 5, 5)),
    "conv 1d": ("Conv", [_weight(5, 4, 3)], {"pads": [1, 1]}, (4, 9)),
    "conv 3d": ("Conv", [_weight(2, 1, 2, 2, 2)], {}, (1, 4, 3, 3)),
    "gemm": ("Gemm", [_weight(4, 5), _weight(5)], {"alpha": 0.5, "beta": 2.0}, (4,)),
    "gemm transposed": ("Gemm", [_weight(5, 4)], {"transB": 1}, (4,)),
    "matmul": ("MatMul", [_weight(4, 5)], {}, (3, 4)),
    "max pool": ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, (2, 7, 8)),
    "max pool ceil": ("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}, (2, 8, 5)),
    "max pool dilated": ("MaxPool", [], {"kernel_shape": [2, 2], "dilations": [2, 2]}, (2, 6, 6)),
    "average pool": ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}, (2, 6, 6)),
    "average pool padded": ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, (2, 5, 5)),
    "average pool counting padding": (
        "AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, (2, 5, 5)
    ),
    "average pool ceil": ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, (2, 5, 5)),
    "global average": ("GlobalAveragePool", [], {}, (2, 5, 4)),
    "reduce mean": ("ReduceMean", [_ints(-1, -2)], {"keepdims": 0}, (2, 5, 4)),
    "reduce sum": ("ReduceSum", [_ints(1)], {}, (2, 5)),
    "clip": ("Clip", [np.float32(0).reshape(()), np.float32(0.7).reshape(())], {}, (5,)),
    "clip one side": ("Clip", [np.float32(-np.inf).reshape(()), np.float32(0.7).reshape(())], {}, (5,)),
    "hard sigmoid": ("HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.5}, (5,)),
    "hard swish": ("HardSwish", [], {}, (5,)),
    "leaky": ("LeakyRelu", [], {"alpha": 0.1}, (5,)),
    "leaky by default": ("LeakyRelu", [], {}, (5,)),
    "prelu": ("PRelu", [_weight(3, 1)], {}, (3, 4)),
    "max": ("Max", [_weight(5)], {}, (5,)),
    "min": ("Min", [_weight(5)], {}, (5,)),
    "sum": ("Sum", [_weight(5), _weight(5)], {}, (5,)),
    "sub": ("Sub", [_weight(5)], {}, (5,)),
    "div": ("Div", [_weight(5)], {}, (5,)),
    "abs": ("Abs", [], {}, (5,)),
    "neg": ("Neg", [], {}, (5,)),
    "batch norm": (
        "BatchNormalization", [_weight(3), _weight(3), _weight(3), np.abs(_weight(3))], {"epsilon": 0.01}, (3, 4)
    ),
    "flatten": ("Flatten", [], {"axis": 2}, (3, 4, 2)),
    "transpose": ("Transpose", [], {"perm": [0, 2, 1]}, (3, 4)),
    "squeeze": ("Squeeze", [_ints(1)], {}, (1, 4)),
    "unsqueeze": ("Unsqueeze", [_ints(1)], {}, (3,)),
    "slice": ("Slice", [_ints(1, -3), _ints(2**62, -1), _ints(1, 2), _ints(2, 1)], {}, (6, 5)),
    "pad": ("Pad", [_ints(0, 1, 0, 2)], {}, (5,)),
    "pad with a number": ("Pad", [_ints(0, 1, 0, 2), np.float32(1e-38).reshape(())], {}, (5,)),
    "reshape": ("Reshape", [_ints(0, -1, 2)], {}, (3, 4)),
    "gather": ("Gather", [_ints(2, 0, -1)], {"axis": 1}, (4, 3)),
    "expand": ("Expand", [_ints(1, 3, 4)], {}, (1, 4)),
    "cast": ("Cast", [], {"to": 1}, (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_operator_equals_onnxruntime(name: str, tmp_path: Path) -> None:
    operator, others, attributes, sample = CASES[name]
    tensors = {f"w{i}": value for i, value in enumerate(others) if value is not None}
    node = helper.make_node(operator, ["x", *tensors], ["y"], name="node", **attributes)
    outputs = {"y": ("float32", [None] * _rank(name, sample))}
    path = save(tmp_path / "m.onnx", [node], {"x": ("float32", ["batch", *sample])}, outputs, tensors)
    _check(path, np.random.default_rng(7).standard_normal((2, *sample)).astype(np.float32))


def _rank(name: str, sample: tuple[int, ...]) -> int:
    change = {"flatten": -2, "squeeze": -1, "unsqueeze": 1, "reshape": 0, "reduce mean": -2}
    return 1 + len(sample) + change.get(name, 0)


@pytest.mark.parametrize(("gather", "index"), [("Gather", "kept"), ("GatherElements", "index")])
def test_a_split_in_parts_and_a_write_back(gather: str, index: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=1, num_outputs=2),
        helper.make_node("Shape", ["x"], ["rows"], name="shape", start=0, end=1),
        helper.make_node("Concat", ["rows", "two"], ["wide"], name="wide", axis=0),
        helper.make_node("Expand", ["kept", "wide"], ["index"], name="expand"),
        helper.make_node(gather, ["a", index], ["k"], name="gather", axis=1),
        helper.make_node("Relu", ["k"], ["r"], name="relu"),
        helper.make_node("ScatterElements", ["b", "index", "r"], ["y"], name="write", axis=1),
    ]
    shape = {"x": ("float32", ["batch", 8])}, {"y": ("float32", ["batch", 4])}
    path = save(tmp_path / "m.onnx", nodes, *shape, {"kept": _ints(3, 1), "two": _ints(2)})
    _check(path, np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32))


@pytest.mark.parametrize(
    ("size", "kept", "trailing"), [(96, 1, ()), (96, 7, ()), (96, 60, ()), (7, 3, ()), (12, 5, (3, 2))]
)
def test_elements_are_written_where_they_belong(
    size: int, kept: int, trailing: tuple[int, ...], tmp_path: Path
) -> None:
    """In any order, from rows of one element to the axis as a whole, and whatever follows the axis."""
    rng = np.random.default_rng(kept)
    index = rng.permutation(size)[:kept].reshape(1, kept, *[1] * len(trailing))
    nodes = [
        helper.make_node("Shape", ["u"], ["like"], name="shape"),
        helper.make_node("Expand", ["kept", "like"], ["index"], name="expand"),
        helper.make_node("ScatterElements", ["x", "index", "u"], ["y"], name="write", axis=1),
    ]
    inputs = {"x": ("float32", ["batch", size, *trailing]), "u": ("float32", ["batch", kept, *trailing])}
    path = save(tmp_path / "m.onnx", nodes, inputs, {"y": inputs["x"]}, {"kept": index})
    feed = [rng.standard_normal((2, n, *trailing)).astype(np.float32) for n in (size, kept)]
    [found] = run_plain(split_model(path), feed).outputs
    expected = feed[0].copy()
    expected[:, index.reshape(-1)] = feed[1]
    assert np.array_equal(found, expected)


def test_everything_that_is_lacking_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], name="one"),
        helper.make_node("Cos", ["a"], ["b"], name="two"),
        helper.make_node("Erf", ["b"], ["c"], name="three"),
        helper.make_node("Pad", ["c", "pads"], ["y"], name="four", mode="reflect"),
    ]
    shape = {"x": ("float32", ["batch", 4])}, {"y": ("float32", ["batch", 6])}
    path = save(tmp_path / "m.onnx", nodes, *shape, {"pads": _ints(0, 1, 0, 1)})
    with pytest.raises(SecureProgramError) as caught:
        run_plain(split_model(path), [np.zeros((1, 4), np.float32)])
    assert len(caught.value.obstacles) == 3
    assert "Erf, at one and 1 other" in str(caught.value) and "Cos, at two" in str(caught.value)
    assert "four (Pad): padding by 'reflect'" in str(caught.value)


def test_inputs_that_do_not_fit_are_named(model: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(2, 1, 5, 5\), expected \(batch, 1, 6, 6\)"):
        run_plain(split_model(model), [np.zeros((2, 1, 5, 5), np.float32)])
