"""Run a model file in the clear, simulated, or by real parties on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autorep_fx.errors import ConfigError, DataError, ProtocolError
from autorep_fx.files import output_directory
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.calls import stated_sites
from autorep_fx.runtime.secure.fixed_point import check_headroom, emulate
from autorep_fx.runtime.secure.node_profile import profile_of
from autorep_fx.runtime.secure.plain import run_plain
from autorep_fx.runtime.secure.prediction import predicted_bytes, predicted_nodes
from autorep_fx.runtime.secure.profile import Counters
from autorep_fx.runtime.secure.profiled import Measured
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.results import SecureRun, Step
from autorep_fx.runtime.secure.split import Split, split_model
from autorep_fx.runtime.session import Session

__all__ = ["MODES", "check_dealer", "queries_of", "run_model"]

#: Ways to run a model.
MODES = ("plain", "simulate", "execute")


def run_model(
    path: Path | str, inputs: Sequence[Array], settings: Settings, *, mode: str = "simulate", batch: int | None = None,
    timeout: float = 600.0, insecure_dealer: bool = False, log: Path | None = None, profile: bool = False,
) -> SecureRun:  # fmt: skip
    """Run a model file, and compare its outputs with onnxruntime's.

    Args:
        path: The ONNX file.
        inputs: Its inputs, each ``(N, ...)``.
        settings: Protocol settings; in mode ``plain`` they say nothing.
        mode: ``plain`` (in the clear), ``simulate`` (all parties in one process) or ``execute`` (one process per party
            over TCP with mutual TLS, on this machine).
        batch: Samples per query; all of them in one query if it is unset.
        timeout: Seconds that a party waits for another.
        insecure_dealer: Execute a protocol although its dealer is not secure.
        log: Folder to keep the engine's raw logs in: one file of all simulated parties, or a folder per party.
        profile: Run operation by operation, and say what each of them cost; for simulated parties.

    Returns:
        Outputs and costs.

    Raises:
        EngineMissingError: The engine is not there.
        ModelFileError: The file is not valid.
        SecureProgramError: It cannot be split, or has operations without a form.
        DataError: The inputs do not fit.
        ProtocolError: The protocol's dealer is not secure, or numbers do not fit its ring.
        PeerError: A party failed.
    """
    if mode not in MODES:
        raise ConfigError("There is no such mode.", received=repr(mode), fix=f"Pass {', '.join(MODES)}.")
    if mode == "execute":
        check_dealer(settings, insecure_dealer=insecure_dealer)
    if profile and mode != "simulate":
        raise ConfigError(
            "Only simulated parties run operation by operation.", received=f"a profile in mode {mode!r}",
            fix="Pass mode 'simulate': bytes and messages are the same in all modes.",
        )  # fmt: skip
    queries = queries_of(inputs, batch)
    split = split_model(path)
    if mode == "plain":
        result = _plain(split, queries)
    else:
        check_headroom(emulate(split, inputs, None, protocol=settings.protocol).ranges, settings)
        if mode == "simulate":
            result, measured = _simulate(split, queries, settings, timeout, log, profile=profile)
            if profile:
                sizes = [len(query[0]) for query in queries]
                result.profile = profile_of(
                    measured, predicted_nodes(path, sizes, settings), stated_sites(path), split.program.nodes
                )
        else:
            from autorep_fx.runtime.secure.execute import execute

            result = execute(split, queries, settings, timeout=timeout, insecure_dealer=insecure_dealer, log=log)
        result.predicted_bytes, note = predicted_bytes(path, [len(query[0]) for query in queries], settings)
        result.notes += [note] if note else []
    session = Session(path, "cpu")
    references = [
        session.run(*(v.astype(t) for v, t in zip(query, session.types.values(), strict=True))) for query in queries
    ]
    result.compare(_stacked(references))
    return result


def check_dealer(settings: Settings, *, insecure_dealer: bool) -> None:
    """Refuse to execute a protocol whose dealer is not secure, unless it is asked for.

    Raises:
        ProtocolError: It is not secure, and was not asked for.
    """
    if not settings.of.secure_dealer and not insecure_dealer:
        raise ProtocolError(
            f"{settings.protocol} has no secure dealer here.",
            received=settings.of.dealer,
            fix="Use cheetah (two parties) or aby3 (three); or pass --insecure-dealer, and read its figures as "
            f"{settings.of.caveat!r}.",
        )


def queries_of(inputs: Sequence[Array], batch: int | None) -> list[list[Array]]:
    """Inputs ``(N, ...)`` in queries of at most ``batch`` samples; in one if it is None.

    Raises:
        DataError: They have no common number of samples.
        ConfigError: The batch is below 1.
    """
    sizes = {len(value) for value in inputs if np.ndim(value)}
    if len(sizes) != 1 or 0 in sizes or any(not np.ndim(value) for value in inputs):
        raise DataError(
            "The inputs have no common number of samples.", received=", ".join(str(np.shape(v)) for v in inputs),
            fix="Pass arrays (N, ...) with the same N, at least 1.",
        )  # fmt: skip
    [samples] = sizes
    if batch is not None and batch < 1:
        raise ConfigError("A query has at least one sample.", received=str(batch), fix="Pass 1 or more.")
    step = batch or samples
    return [[value[start : start + step] for value in inputs] for start in range(0, samples, step)]


def _plain(split: Split, queries: list[list[Array]]) -> SecureRun:
    runs = [run_plain(split, query) for query in queries]
    steps = [
        Step(Counters(), run.seconds, run.compile_seconds, sum(split.program.comparisons.values()) * len(query[0]), 0)
        for run, query in zip(runs, queries, strict=True)
    ]
    outputs = _stacked([run.outputs for run in runs])
    note = "in the clear: nothing is hidden, comparisons are nominal ones"
    return SecureRun("plain", None, _samples(queries), outputs, None, steps, split.program.leaks, notes=[note])


def _simulate(
    split: Split, queries: list[list[Array]], settings: Settings, timeout: float, log: Path | None, *, profile: bool
) -> tuple[SecureRun, list[list[Measured]]]:
    from autorep_fx.runtime.secure.profiled import ProfiledSession
    from autorep_fx.runtime.secure.simulate import SimulatedSession
    from autorep_fx.runtime.secure.slices import ENGINE_LOG, engine_log

    if log is not None:
        engine_log(output_directory(log) / ENGINE_LOG)
    session = (ProfiledSession if profile else SimulatedSession)(split, settings, timeout=timeout)
    results = [session.query(query) for query in queries]
    notes = ["simulated: all parties in one process, which sees every share"]
    if settings.of.caveat:
        notes.append(f"figures are {settings.of.caveat}")
    if profile:
        notes.append("run operation by operation: seconds are of the operations, one program each")
    run = SecureRun(
        "simulate", settings, _samples(queries), _stacked([outputs for outputs, _ in results]), session.setup,
        [step for _, step in results], split.program.leaks, notes=notes,
    )  # fmt: skip
    return run, session.measured if isinstance(session, ProfiledSession) else []


def _samples(queries: list[list[Array]]) -> int:
    return sum(len(query[0]) for query in queries)


def _stacked(outputs: Sequence[Sequence[Array]]) -> tuple[Array, ...]:
    """Outputs of several queries, one after the other."""
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
