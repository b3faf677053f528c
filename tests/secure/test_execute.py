"""Real processes over TCP with mutual TLS, and what goes wrong with them: a clear error in time, nothing hangs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from autorep_fx.errors import PeerError, ProtocolError
from autorep_fx.runtime.secure.certificates import fingerprint, make_certificates
from autorep_fx.runtime.secure.execute import Prepared, prepare_parties, start_party
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import WEIGHTS_FILE
from autorep_fx.runtime.secure.run import run_model
from autorep_fx.runtime.secure.simulate import SimulatedSession
from autorep_fx.runtime.secure.split import split_model

pytestmark = pytest.mark.engine
# Of a party, on a machine that has other work; and for one process to start and import the engine.
TIMEOUT, START = 6.0, 60.0

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts parties, and ends those that are left, by their ids."""
    running: list[subprocess.Popen[str]] = []

    def begin(prepared: Prepared, rank: int, **options: object) -> subprocess.Popen[str]:
        running.append(start_party(prepared.arguments(rank, **options)))  # type: ignore[arg-type]
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _prepare(
    model: Path, folder: Path, x: np.ndarray, protocol: str = "aby3", timeout: float = TIMEOUT, start: float = START
) -> Prepared:
    return prepare_parties(split_model(model), [x], Settings(protocol), folder, timeout=timeout, start_timeout=start)


def _error(process: subprocess.Popen[str], limit: float = START + 3 * TIMEOUT) -> str:
    """Standard error of a party that has to fail in time."""
    error = process.communicate(timeout=limit)[1]
    assert process.returncode == 1, error
    return error


def _edit(prepared: Prepared, change: Callable[[dict[str, object]], None], name: str) -> Prepared:
    """The same parties, with another parties.yaml for whoever is given it."""
    value = yaml.safe_load(prepared.config.read_text())
    change(value)
    path = prepared.folder / name
    path.write_text(yaml.safe_dump(value))
    return dataclasses.replace(prepared, config=path)


def test_cheetah_runs_in_two_processes(model: Path, x: np.ndarray) -> None:
    run = run_model(model, [x], Settings("cheetah"), mode="execute", batch=1, timeout=60)
    assert run.max_error is not None and run.max_error < 1e-3
    assert len(run.queries) == 2 and run.outputs[0].shape == (2, 3)
    value = run.to_json()
    assert sum(part["bytes"] for part in run.by_rank) == value["measured_bytes"]
    assert sum(part["messages"] for part in run.by_rank) == value["messages"]
    assert value["threat_model"]["protocol"] == "cheetah" and value["setup"]["bytes"] > 10**6
    assert not any("dealer" in note for note in value["notes"])


def test_three_processes_send_what_simulated_ones_send_and_log_no_number(
    model: Path, x: np.ndarray, tmp_path: Path, start: Start
) -> None:
    prepared = _prepare(model, tmp_path, x, timeout=60)
    processes = [start(prepared, rank, batch=1) for rank in range(3)]
    texts = [text for process in processes for text in process.communicate(timeout=START * 2)]
    assert [process.returncode for process in processes] == [0, 0, 0], texts
    results = [json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in range(3)]
    session = SimulatedSession(split_model(model), Settings("aby3"), timeout=60)
    [expected], step = session.query([x[:1]])
    for result in results:
        assert [query["bytes"] for query in result["queries"]] == [step.counters.bytes] * 2
        assert [query["messages"] for query in result["queries"]] == [step.counters.messages] * 2
        assert [query["share_bytes"] for query in result["queries"]] == [step.share_bytes] * 2
        assert result["setup"]["share_bytes"] == session.setup.share_bytes
        assert result["max_error"] is None  # nobody has both the model and the input
    with np.load(tmp_path / "output.npz") as found:
        [output] = [found[key] for key in found.files]
    assert np.abs(output[:1] - expected).max() < 1e-3
    logs = texts + [path.read_text(errors="replace") for path in tmp_path.glob("log-*/*")]
    logs += [path.read_text() for path in tmp_path.glob("result-*")]
    assert len(logs) == 6 + 6 + 3
    numbers = [*output.ravel(), *x.ravel()[:50]]
    numbers += [n for w in split_model(model).weights.values() for n in w.ravel()[:20] if abs(n) not in (0, 1)]
    for number in numbers:
        assert not any(f"{abs(number):.7g}" in log for log in logs)
    assert all(prepared.keys[rank].read_text().splitlines()[1] not in log for log in logs for rank in range(3))


def test_a_killed_party_ends_the_others(model: Path, tmp_path: Path, start: Start) -> None:
    _check_lost(model, tmp_path, start, signal.SIGKILL, "aby3")


def test_a_stalled_party_ends_the_others(model: Path, tmp_path: Path, start: Start) -> None:
    _check_lost(model, tmp_path, start, signal.SIGSTOP, "semi2k")


def test_a_message_that_cannot_be_delivered_is_a_clear_error(model: Path, tmp_path: Path, start: Start) -> None:
    """The engine gives up after some 9 s, before the timeout, and ends the process of a party that has to send."""
    _check_lost(model, tmp_path, start, signal.SIGKILL, "aby3", timeout=16.0)


def _check_lost(
    model: Path, folder: Path, start: Start, how: signal.Signals, protocol: str, timeout: float = TIMEOUT
) -> None:
    """Lose the server in the middle of a session."""
    x = np.zeros((3000, 1, 6, 6), np.float32)
    prepared = _prepare(model, folder, x, protocol, timeout)
    processes = [start(prepared, rank, batch=1, insecure_dealer=True) for rank in range(len(prepared.roles))]
    log = folder / "log-1" / "engine.log"
    deadline = time.monotonic() + 2 * START
    while not (log.is_file() and log.read_text().count("Link details") > 2):
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.05)
    os.kill(processes[1].pid, how)
    begin = time.monotonic()
    for process in (processes[0], *processes[2:]):
        error = _error(process, 4 * timeout)
        assert f"is gone, or did not answer within {timeout:g} s" in error and "Traceback" not in error, error
    assert time.monotonic() - begin < 3 * timeout


def test_a_certificate_that_is_not_pinned_is_not_let_in(
    model: Path, x: np.ndarray, tmp_path: Path, start: Start
) -> None:
    prepared = _prepare(model, tmp_path, x, "cheetah", start=8.0)
    [other] = make_certificates(tmp_path, ["other"])

    def pretend(value: dict[str, object]) -> None:
        value["parties"][1] |= {"certificate": other.name, "sha256": fingerprint(other)}  # type: ignore[index]

    foreign = dataclasses.replace(
        _edit(prepared, pretend, "foreign.yaml"), keys=(prepared.keys[0], other.with_suffix(".key"))
    )
    client, server = start(prepared, 0), start(foreign, 1)
    error = _error(client)
    assert "Not all parties could be reached" in error and "TLS refused a certificate that is not pinned" in error
    _error(server)


def test_a_swapped_rank_is_found_by_its_signature(model: Path, x: np.ndarray, tmp_path: Path, start: Start) -> None:
    """The helper, whose certificate TLS takes, takes part as the server: the server is not there."""
    prepared = _prepare(model, tmp_path, x)

    def pretend(value: dict[str, object]) -> None:
        parties = value["parties"]
        parties[1]["certificate"], parties[2]["certificate"] = (  # type: ignore[index]
            parties[2]["certificate"], parties[1]["certificate"]  # type: ignore[index]
        )  # fmt: skip
        parties[1]["sha256"], parties[2]["sha256"] = parties[2]["sha256"], parties[1]["sha256"]  # type: ignore[index]

    swapped = _edit(prepared, pretend, "swapped.yaml")
    swapped = dataclasses.replace(swapped, keys=(prepared.keys[0], prepared.keys[2], prepared.keys[1]))
    processes = [start(prepared, 0), start(swapped, 1), start(swapped, 2)]
    error = _error(processes[0])
    assert "takes part as rank 1 does not hold the key of that rank's pinned certificate" in error
    for process in processes[1:]:
        _error(process)


def test_a_rank_with_anothers_key_or_certificate_does_not_start(
    model: Path, x: np.ndarray, tmp_path: Path, start: Start
) -> None:
    prepared = _prepare(model, tmp_path, x, "cheetah")
    crossed = dataclasses.replace(prepared, keys=(prepared.keys[1], prepared.keys[0]))

    def unpin(value: dict[str, object]) -> None:
        value["parties"][1]["sha256"] = "0" * 64  # type: ignore[index]

    crossing, unpinned = start(crossed, 0), start(_edit(prepared, unpin, "unpinned.yaml"), 0)
    assert "does not belong to this rank's certificate" in _error(crossing)
    assert "Certificates are not those that are pinned" in _error(unpinned)


def test_a_tampered_program_and_other_settings_stop_all(
    model: Path, x: np.ndarray, tmp_path: Path, start: Start
) -> None:
    prepared = _prepare(model, tmp_path, x)
    text = (tmp_path / "program.json").read_text()
    kept = text.index('"values":[') + len('"values":[')
    digit = next(i for i in range(kept, len(text)) if text[i].isdigit())
    changed = text[:digit] + ("1" if text[digit] == "0" else "0") + text[digit + 1 :]
    (tmp_path / "tampered.json").write_text(changed)
    tampered = _edit(prepared, lambda value: value.update(program="tampered.json", fraction_bits=16), "tampered.yaml")
    processes = [start(prepared, 0), start(prepared, 1), start(tampered, 2)]
    for process in processes:
        error = _error(process)
        assert "about to run different things" in error
        assert "program SHA-256" in error and "settings SHA-256" in error
    assert not (tmp_path / "output.npz").exists()


def test_weights_are_for_the_server_alone(model: Path, x: np.ndarray, tmp_path: Path, start: Start) -> None:
    prepared = _prepare(model, tmp_path, x, "cheetah")
    line = [*prepared.arguments(0), "--weights", str(tmp_path / WEIGHTS_FILE)]
    process = start_party(line)
    assert "The server has weights, and nobody else" in _error(process)


def test_an_insecure_dealer_has_to_be_asked_for(model: Path, x: np.ndarray, tmp_path: Path, start: Start) -> None:
    with pytest.raises(ProtocolError, match="--insecure-dealer"):
        run_model(model, [x], Settings("semi2k"), mode="execute")
    prepared = _prepare(model, tmp_path, x, "semi2k", timeout=60)
    assert "has no secure dealer here" in _error(start(prepared, 0))
    run = run_model(model, [x], Settings("semi2k"), mode="execute", timeout=60, insecure_dealer=True)
    assert any("online, given a dealer" in note for note in run.notes)
    assert run.max_error is not None and run.max_error < 1e-3


def test_failures_of_parties_are_collected(model: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prepared, "arguments", lambda self, rank, **_: ["secure", "party", "--rank", str(rank)])
    with pytest.raises(PeerError, match=r"(?s)rank 0 \(client, exit code 2\).*--config.*rank 1 \(server"):
        run_model(model, [x], Settings("cheetah"), mode="execute", timeout=5)
