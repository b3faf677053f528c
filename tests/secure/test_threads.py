"""How many threads the engine's products of matrices get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autorep_fx.cli import app
from autorep_fx.runtime.secure.threads import limit_threads


@pytest.mark.parametrize(("cores", "before", "after"), [
    (2, {}, {"OMP_THREAD_LIMIT": "1"}),
    (2, {"OMP_THREAD_LIMIT": "4"}, {"OMP_THREAD_LIMIT": "4"}),
    (64, {}, {}),
])  # fmt: skip
def test_one_each_unless_there_are_cores_for_all(cores: int, before: dict[str, str], after: dict[str, str]) -> None:
    environment = dict(before)
    limit_threads(cores, environment)
    assert environment == after


def test_secure_commands_set_it_before_the_engine_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_THREAD_LIMIT", "4")  # so that what the command sets is taken back
    monkeypatch.delenv("OMP_THREAD_LIMIT")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    result = CliRunner().invoke(app, ["secure", "certs", "--out", str(tmp_path / "certs")])
    assert result.exit_code == 0
    assert os.environ["OMP_THREAD_LIMIT"] == "1"
