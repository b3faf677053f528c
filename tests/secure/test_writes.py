"""Kept elements written back under a protocol: exact in every ring, without a message or a loop, and short programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.simulate import SimulatedSession
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
    ("size", "written", "trailing"), [(2048, 90, ()), (784, 1, ()), (96, 60, ()), (7, 2, ()), (12, 3, (3, 2))]
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
