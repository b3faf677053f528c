"""Two models, measured against each other: alternating runs, memory, and where the difference lies."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autorep_fx.errors import ConfigError, ModelFileError
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.machine import describe_machine
from autorep_fx.runtime.op_profile import OpTime, read_profile
from autorep_fx.runtime.peak_memory import PeakMemory, peak_memory
from autorep_fx.runtime.session import Session

__all__ = ["BatchBench", "Bench", "Spread", "alternate", "bench"]

# Profiled runs: a profile costs time itself, and is no more than a picture of where the time goes.
_PROFILED = 10


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of ``n`` measurements."""

    median: float
    lower: float
    upper: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least two values."""
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, len(values))


@dataclass(frozen=True)
class BatchBench:
    """What was measured at one batch size; the first model of each pair is the original.

    Attributes:
        batch: Samples in a run.
        seconds: Seconds of a run, of either model.
        ratio: The second model's time over the first's, run by run.
        memory: Peak memory of either model, in a process of its own; None where it was not measured.
        operators: Time by operator, the largest difference first; none where it was not measured.
    """

    batch: int
    seconds: tuple[Spread, Spread]
    ratio: Spread
    memory: tuple[PeakMemory, PeakMemory] | None
    operators: tuple[tuple[OpTime, OpTime], ...]


@dataclass(frozen=True)
class Bench:
    """A measurement and its conditions.

    Attributes:
        models: The two files.
        device: Where both ran.
        threads: Threads inside an operator; 0 is onnxruntime's choice.
        batches: A row per batch size.
        machine: Hardware, versions and load.
    """

    models: tuple[str, str]
    device: str
    threads: int
    batches: tuple[BatchBench, ...]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a mapping, times in seconds and memory in bytes."""
        return asdict(self)


def bench(
    original: Path | str, compiled: Path | str, *, batches: Sequence[int] = (1, 32),
    device: Literal["auto", "cpu", "cuda"] = "cpu", threads: int = 0, runs: int = 50, warm_up: int = 5,
    memory: bool = True, profile: bool = True,
) -> Bench:  # fmt: skip
    """Measure two ONNX files that take the same inputs.

    Both are loaded in one process and run in turn, A B B A and so on, so that what else the machine does meets both.
    Threads do not spin between runs, where they would take the cores from the other model.

    Args:
        original: The model to compare with.
        compiled: The other one.
        batches: Batch sizes.
        device: As of :class:`Session`.
        threads: As of :class:`Session`.
        runs: Measured runs of each model at each batch size.
        warm_up: Runs before them, not measured.
        memory: Measure peak memory, each model in a process of its own.
        profile: Measure the time by operator, in further runs.

    Raises:
        ConfigError: There are too few runs, or no batch size.
        ModelFileError: A file cannot be loaded, or the two take other inputs.
        DeviceError: The device is not there.
    """
    if runs < 2 or warm_up < 0 or not batches or min(batches) < 1:
        raise ConfigError(
            "There is nothing to measure a spread of.",
            received=f"{runs} runs, {warm_up} to warm up, batches {list(batches)}",
            fix="Pass two runs or more, and batch sizes of one or more.",
        )
    paths = (Path(original), Path(compiled))
    sessions = [Session(path, device, threads=threads, spinning="running") for path in paths]
    _check_same_inputs(paths, sessions, batches)
    machine = describe_machine(device)
    rows = []
    for batch in batches:
        feeds = [_inputs(session, batch) for session in sessions]
        first, second = alternate(_calls(sessions, feeds), runs, warm_up)
        peaks = [peak_memory(path, batch=batch, device=device, threads=threads) for path in paths] if memory else []
        rows.append(
            BatchBench(
                batch, (Spread.of(first), Spread.of(second)),
                Spread.of([b / a for a, b in zip(first, second, strict=True)]),
                (peaks[0], peaks[1]) if memory else None,
                _operators(paths, device, threads, feeds, min(runs, _PROFILED), warm_up) if profile else (),
            )
        )  # fmt: skip
    return Bench((str(paths[0]), str(paths[1])), sessions[0].device, threads, tuple(rows), machine)


def alternate(runs: Sequence[Callable[[], Any]], count: int, warm_up: int) -> list[list[float]]:
    """Seconds of each of ``count`` calls of each function, called in turn and in turns of either direction.

    Args:
        runs: The functions.
        count: Measured calls of each.
        warm_up: Calls of each before them.
    """
    for run in runs:
        for _ in range(warm_up):
            run()
    seconds: list[list[float]] = [[] for _ in runs]
    order = list(enumerate(runs))
    for turn in range(count):
        for index, run in order if turn % 2 == 0 else reversed(order):
            start = time.perf_counter()
            run()
            seconds[index].append(time.perf_counter() - start)
    return seconds


def _check_same_inputs(paths: tuple[Path, Path], sessions: Sequence[Session], batches: Iterable[int]) -> None:
    shapes = [
        [tuple(s if isinstance(s, int) else "free" for s in shape) for shape in session.inputs.values()]
        for session in sessions
    ]
    if shapes[0] != shapes[1]:
        raise ModelFileError(
            "The two models do not take the same inputs.",
            received="; ".join(f"{path}: {session}" for path, session in zip(paths, sessions, strict=True)),
            fix="Export the original with the shapes of the compiled model.",
        )
    for batch in batches:
        for session, path in zip(sessions, paths, strict=True):
            fixed = [s[0] for s in session.inputs.values() if s and isinstance(s[0], int) and s[0] != batch]
            if fixed and all(s and isinstance(s[0], int) for s in session.inputs.values()):
                raise ModelFileError(
                    f"{path} has a fixed batch.", received=f"batch {batch}, where it takes {fixed[0]}",
                    fix=f"Measure it at batch {fixed[0]}.",
                )  # fmt: skip


def _calls(sessions: Sequence[Session], feeds: Sequence[dict[str, Array]]) -> list[Callable[[], Any]]:
    return [partial(session.run, **feed) for session, feed in zip(sessions, feeds, strict=True)]


def _inputs(session: Session, batch: int) -> dict[str, Array]:
    """Noise for floating-point inputs, zeros for others; the same for either model, by position."""
    result = {}
    for index, (name, zeros) in enumerate(session.zeros(batch).items()):
        noise = np.random.default_rng(index).standard_normal(zeros.shape)
        result[name] = noise.astype(zeros.dtype) if np.issubdtype(zeros.dtype, np.floating) else zeros
    return result


def _operators(
    paths: tuple[Path, Path], device: Literal["auto", "cpu", "cuda"], threads: int,
    feeds: Sequence[dict[str, Array]], runs: int, warm_up: int,
) -> tuple[tuple[OpTime, OpTime], ...]:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        sessions = [
            Session(path, device, threads=threads, spinning="running", profile=Path(folder) / str(index))
            for index, path in enumerate(paths)
        ]
        alternate(_calls(sessions, feeds), runs, warm_up)
        profiles = [read_profile(session.end_profile(), runs) for session in sessions]
    names = list(dict.fromkeys(name for profile in profiles for name in profile))
    rows = [(profiles[0].get(name, OpTime(name)), profiles[1].get(name, OpTime(name))) for name in names]
    return tuple(sorted(rows, key=lambda row: -abs(row[1].seconds - row[0].seconds)))
