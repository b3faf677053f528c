"""Kept elements written back under a protocol: exact in every ring, without a message or a loop, and short programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.simulate import SimulatedSession
from autorep_fx.runtime.secure.slices import Slice
from autorep_fx.runtime.secure.split import split_model
from onnx_models import save

pytestmark = pytest.mark.engine


def _write(path: Path, size: int, kept: np.ndarray, trailing: tuple[int, ...] = ()) -> Path:
    """``y = x`` with ``u`` at ``kept`` along axis 1."""
    nodes = [
        helper.make_node("Shape", ["u"], ["like"], name="shape"),
        helper.make_node("Expand", ["kept", "like"], ["index"], name="expand"),
        helper.make_node("ScatterElements", ["x", "index", "u"], ["y"], name="write", axis=1),
    ]
    inputs = {"x": ("float32", ["batch", size, *trailing]), "u": ("float32", ["batch", len(kept), *trailing])}
    places = kept.reshape(1, -1, *[1] * len(trailing))
    return save(path, nodes, inputs, {"y": inputs["x"]}, {"kept": places})


@pytest.mark.parametrize(
    ("protocol", "ring_bits", "fraction_bits"),
    [("semi2k", 32, 8), ("semi2k", 64, 18), ("aby3", 64, 18), ("aby3", 128, 30), ("cheetah", 64, 18)],
)
@pytest.mark.parametrize(
    ("size", "written", "trailing"),
    [(8192, 600, ()), (2003, 200, ()), (784, 1, ()), (96, 60, ()), (7, 2, ()), (12, 3, (3, 2))],
)
def test_values_arrive_and_others_stay(
    protocol: str, ring_bits: int, fraction_bits: int, size: int, written: int, trailing: tuple[int, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    """To the last bit of fixed point, also where a change is far larger than what it makes; nothing is sent."""
    rng = np.random.default_rng(written)
    kept = rng.permutation(size)[:written]
    settings = Settings(protocol, ring_bits, fraction_bits)
    session = SimulatedSession(split_model(_write(tmp_path / "m.onnx", size, kept, trailing)), settings, timeout=60)
    grid = 2.0**-8
    x, u = (
        np.round(rng.standard_normal((2, n, *trailing)) * scale / grid).astype(np.float32) * np.float32(grid)
        for n, scale in ((size, 1000.0), (written, 1.0))
    )
    [y], step = session.query([x, u])
    expected = x.copy()
    expected[:, kept] = u
    assert np.array_equal(y, expected)
    assert step.counters.bytes == step.counters.messages == 0


def test_places_are_no_part_of_the_text(tmp_path: Path) -> None:
    """The engine reads the text at every query; its length does not grow with what is written."""
    rng = np.random.default_rng(0)
    lengths, digests = [], set()
    for index, written in enumerate((100, 101, 300)):
        path = _write(tmp_path / f"{index}.onnx", 4096, rng.permutation(4096)[:written])
        session = SimulatedSession(split_model(path), Settings("aby3"), timeout=60)
        executable = session.compiler.query([(1, 4096), (1, written)])
        lengths.append(len(executable.program.code))
        digests.add(executable.digest)
        assert sum(value.size for value in executable.constants.values()) > 4096
    assert max(lengths) - min(lengths) < 100
    assert len(digests) == 3


def test_other_places_are_another_program(tmp_path: Path) -> None:
    """Shapes and text agree; the digest that parties compare does not."""
    found = []
    for name, kept in (("a", np.arange(100) * 2), ("b", np.arange(100) * 2 + 1)):
        path = _write(tmp_path / f"{name}.onnx", 4096, kept)
        session = SimulatedSession(split_model(path), Settings("aby3"), timeout=60)
        found.append(session.compiler.query([(1, 4096), (1, 100)]))
    assert found[0].program.code == found[1].program.code
    assert found[0].digest != found[1].digest


def test_public_values_and_none_at_all(tmp_path: Path) -> None:
    """Constants are written, and written into, without a message; an empty index leaves everything as it is.

    What is public stays so: a write of constants into constants is computed before the program is built.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 8, (1, 96)).astype(np.float32)
    constant = np.arange(96, dtype=np.int64)[None]
    for base, values, written in (
        ("x", "c", 50), ("c", "x", 50), ("c", "x", 5), ("c", "c", 5), ("x", "c", 0), ("c", "x", 0),
    ):  # fmt: skip
        index = rng.permutation(96)[:written][None]
        nodes = [
            helper.make_node("Cast", ["whole"], ["numbers"], name="cast", to=1),
            helper.make_node("Slice", ["numbers", "first", "count", "axis"], ["c_few"], name="constants"),
            helper.make_node("Slice", ["x", "first", "count", "axis"], ["x_few"], name="secrets"),
            helper.make_node(
                "ScatterElements",
                ["numbers" if base == "c" else "x", "index", f"{values}_few"], ["written"], name="write", axis=1,
            ),
            helper.make_node("Add", ["written", "x"], ["y"], name="sum"),
        ]  # fmt: skip
        tensors = {
            "whole": constant, "index": index, "first": np.array([0]), "count": np.array([written]),
            "axis": np.array([1]),
        }  # fmt: skip
        shape = {"x": ("float32", [1, 96])}, {"y": ("float32", [1, 96])}
        path = save(tmp_path / "m.onnx", nodes, *shape, tensors)
        [y], step = SimulatedSession(split_model(path), Settings("aby3"), timeout=60).query([x])
        expected = (constant if base == "c" else x).astype(np.float32).copy()
        expected[0, index[0]] = (constant if values == "c" else x)[0, :written]
        assert np.array_equal(y, expected + x)
        assert step.counters.bytes == 0


def test_constants_are_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parties, one program, three queries."""
    stored: list[str] = []
    put = Slice.set
    monkeypatch.setattr(Slice, "set", lambda self, name, share: (stored.append(name), put(self, name, share))[1])
    path = _write(tmp_path / "m.onnx", 784, np.arange(0, 784, 13))
    session = SimulatedSession(split_model(path), Settings("aby3"), timeout=60)
    for _ in range(3):
        session.query([np.zeros((1, 784), np.float32), np.ones((1, 61), np.float32)])
    constants = [name for name in stored if name.startswith("constant-")]
    assert len(constants) == 3 * len(set(constants)) > 0
