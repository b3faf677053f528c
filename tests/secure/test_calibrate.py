"""Calibration finds the constants of the profile that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from autorep_fx.cli import app
from autorep_fx.cost.profile import load_profile
from autorep_fx.errors import ProtocolError
from autorep_fx.runtime.secure.calibrate import calibrate
from autorep_fx.runtime.secure.measurements import line, solve, solve_seconds

pytestmark = pytest.mark.engine
CONSTANTS = ("bytes", "left", "right", "result", "call", "messages", "messages_total")


def test_byte_costs_are_those_of_the_shipped_profile() -> None:
    """Exactly, from other sizes than its own; computation is measured, and its own on every machine."""
    found, shipped = calibrate(["semi2k", "aby3"], sizes=(100, 300, 1000), repeats=2, timeout=60), load_profile()
    assert found.fixed_point == shipped.fixed_point
    for name, protocol in found.protocols.items():
        expected = shipped.protocol(name)
        assert set(protocol.operations) == set(expected.operations)
        assert (protocol.parties, protocol.setup_bytes) == (expected.parties, expected.setup_bytes)
        assert protocol.local is not None and protocol.local.status == "measured"
        for operation, cost in protocol.operations.items():
            constants = [getattr(cost, key) for key in CONSTANTS]
            assert constants == [getattr(expected.operations[operation], key) for key in CONSTANTS], operation
            assert cost.status == "measured" and "spu" in cost.source
            assert cost.seconds is not None and cost.seconds.status == "measured"


def test_cheetahs_reserves_are_those_of_the_shipped_profile() -> None:
    """Elements and messages exactly, of all parties; bytes of ciphertexts vary a little."""
    found, shipped = (
        profile.protocol("cheetah") for profile in (calibrate(["cheetah"], repeats=2, timeout=300), load_profile())
    )
    assert found.operations["compare"].split == shipped.operations["compare"].split
    for operation in ("compare", "product"):
        reserve, expected = found.operations[operation].reserve, shipped.operations[operation].reserve
        assert reserve is not None
        assert expected is not None
        for key in ("elements", "messages", "serial", "left", "direct_from", "direct_elements", "direct_messages"):
            assert getattr(reserve, key) == getattr(expected, key), (operation, key)
        assert reserve.bytes == pytest.approx(expected.bytes, rel=1e-3)
        assert reserve.direct_bytes == pytest.approx(expected.direct_bytes, rel=1e-3)


def test_the_command_writes_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    result = CliRunner().invoke(app, ["cost", "calibrate", "--out", str(path), "--protocol", "semi2k"])
    assert result.exit_code == 0, result.output
    profile = load_profile(path)
    assert list(profile.protocols) == ["semi2k"]
    assert profile.protocol("semi2k").operations["compare"].bytes == 112


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError, match="Did you mean 'aby3'"):
        calibrate(["aby"])


def test_a_line_tells_calls_from_elements_and_refuses_a_curve() -> None:
    assert line((10, 20, 40), (36, 56, 96), tolerance=0.0) == (16, 2)
    with pytest.raises(ProtocolError, match="does not grow in a line"):
        line((10, 20, 40), (36, 57, 96), tolerance=0.0)


def test_no_cost_is_negative() -> None:
    """What would be is 0, and the rest is fitted without it."""
    assert solve([(1, 1), (1, 2), (1, 3)], [1.0, 3.0, 5.0]) == pytest.approx([0.0, 22 / 14])


def test_seconds_are_fitted_by_relative_errors() -> None:
    """Half of 2 s weighs as much as half of 1 s: c of the least (c/1 − 1)² + (c/2 − 1)²."""
    assert solve_seconds([(1,), (1,)], [1.0, 2.0]) == [1.2]
