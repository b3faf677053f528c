"""Real parties on this machine: one process each, over TCP with mutual TLS."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autorep_fx.errors import PeerError
from autorep_fx.files import output_directory, write_text
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.certificates import fingerprint, make_certificates
from autorep_fx.runtime.secure.profile import Counters, OpCounter
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import WEIGHTS_FILE
from autorep_fx.runtime.secure.results import SecureRun, Step
from autorep_fx.runtime.secure.split import Split

__all__ = ["PARTIES_FILE", "Prepared", "execute", "prepare_parties", "start_party"]

#: Name of the file with the parties.
PARTIES_FILE = "parties.yaml"
# Beyond the parties' own timeouts, for starting Python and importing the engine.
_START = 60.0
_POLL = 0.1


@dataclass(frozen=True)
class Prepared:
    """Files of parties on this machine.

    Attributes:
        folder: Where they are.
        config: ``parties.yaml``.
        keys: Private key by rank.
        roles: Role by rank.
    """

    folder: Path
    config: Path
    keys: tuple[Path, ...]
    roles: tuple[str, ...]

    def arguments(self, rank: int, *, batch: int | None = None, insecure_dealer: bool = False) -> list[str]:
        """The command line of ``autorep-fx secure party`` for a rank."""
        result = ["secure", "party", "--rank", str(rank), "--config", str(self.config), "--key", str(self.keys[rank])]
        result += ["--json", str(self.folder / f"result-{rank}.json"), "--log", str(self.folder / f"log-{rank}")]
        if self.roles[rank] == "server":
            result += ["--weights", str(self.folder / WEIGHTS_FILE)]
        if self.roles[rank] == "client":
            result += ["--input", str(self.folder / "input.npz"), "--output", str(self.folder / "output.npz")]
            result += ["--batch", str(batch)] if batch else []
        return result + (["--insecure-dealer"] if insecure_dealer else [])


def prepare_parties(
    split: Split,
    inputs: Sequence[Array],
    settings: Settings,
    folder: Path,
    *,
    timeout: float,
    start_timeout: float = _START,
) -> Prepared:
    """Write what parties on this machine need: the split model, the input, certificates and ``parties.yaml``."""
    split.save(folder)
    np.savez(folder / "input.npz", **{f"input_{i}": value for i, value in enumerate(inputs)})
    roles = settings.of.roles
    certificates = make_certificates(folder, [f"{rank}-{role}" for rank, role in enumerate(roles)])
    ports = _free_ports(len(roles))
    value = {
        "session": os.urandom(8).hex(),
        "protocol": settings.protocol,
        "ring_bits": settings.ring_bits,
        "fraction_bits": settings.fraction_bits,
        "timeout": timeout,
        "start_timeout": start_timeout,
        "parties": [
            {"role": role, "address": f"127.0.0.1:{port}", "certificate": path.name, "sha256": fingerprint(path)}
            for role, port, path in zip(roles, ports, certificates, strict=True)
        ],
    }
    config = write_text(folder / PARTIES_FILE, yaml.safe_dump(value, sort_keys=False))
    return Prepared(folder, config, tuple(path.with_suffix(".key") for path in certificates), tuple(roles))


def start_party(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start a party as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "autorep_fx", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def execute(
    split: Split,
    queries: Sequence[Sequence[Array]],
    settings: Settings,
    *,
    timeout: float,
    insecure_dealer: bool,
    log: Path | None = None,
) -> SecureRun:
    """Run all parties on this machine, with certificates made for this run, and collect the client's result.

    Raises:
        PeerError: A party failed; with what each of them said.
    """
    with tempfile.TemporaryDirectory(prefix="autorep-parties-") as name:
        folder = Path(name)
        inputs = [np.concatenate(parts) for parts in zip(*queries, strict=True)]
        prepared = prepare_parties(split, inputs, settings, folder, timeout=timeout)
        batch = len(queries[0][0])
        arguments = [
            prepared.arguments(rank, batch=batch, insecure_dealer=insecure_dealer)
            for rank in range(len(prepared.roles))
        ]
        try:
            _wait([start_party(line) for line in arguments], prepared.roles, timeout)
        finally:
            if log is not None:
                for path in folder.glob("log-*"):
                    shutil.copytree(path, output_directory(log) / path.name, dirs_exist_ok=True)
        client = prepared.roles.index("client")
        value = json.loads((folder / f"result-{client}.json").read_text())
        with np.load(folder / "output.npz") as found:
            outputs = tuple(found[key] for key in found.files)
    return _result(value, settings, outputs, split)


def _wait(processes: list[subprocess.Popen[str]], roles: Sequence[str], timeout: float) -> None:
    """Wait until all parties are done, or for as long as the others may take once one has failed."""
    deadline = None
    try:
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() not in (None, 0) for process in processes)
            if failed and deadline is None:
                deadline = time.monotonic() + timeout + _START
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(_POLL)
    finally:
        for process in processes:
            process.kill()
    texts = [process.communicate()[1].strip() for process in processes]
    lines = [
        f"  rank {rank} ({role}, exit code {process.returncode}): {text or 'no message'}"
        for rank, (role, process, text) in enumerate(zip(roles, processes, texts, strict=True))
        if process.returncode
    ]
    if lines:
        raise PeerError(
            "Not all parties finished:\n" + "\n".join(lines), fix="The first cause is above; the others follow from it."
        )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _result(value: dict[str, Any], settings: Settings, outputs: tuple[Array, ...], split: Split) -> SecureRun:
    steps = [Step.from_json(step) for step in value["queries"]]
    if steps:  # operations are kept for all queries together
        operations = {
            name: OpCounter(int(c["calls"]), float(c["seconds"]), int(c["bytes"]), int(c["messages"]))
            for name, c in value["operations"].items()
        }
        counters = Counters(steps[0].counters.bytes, steps[0].counters.messages, 0, operations)
        first = steps[0]
        steps[0] = Step(counters, first.seconds, first.compile_seconds, first.comparisons, first.share_bytes)
    notes = ["all parties on this machine, over loopback with mutual TLS", *value["notes"]]
    setup = Step.from_json(value["setup"]) if value["setup"] else None
    return SecureRun(
        "execute", settings, int(value["samples"]), outputs, setup, steps, split.program.leaks, value["by_rank"],
        notes=notes,
    )  # fmt: skip
