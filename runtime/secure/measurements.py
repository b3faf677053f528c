"""Samples of single operations, taken by every rank in turn, and the lines through them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autorep_fx.errors import ProtocolError
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.bench import Bench, Run

__all__ = ["Sample", "Workload", "line", "random_values", "rounded", "sample", "solve", "solve_seconds", "take"]

# Digits of seconds that are worth writing down, and what a clock can tell.
_DIGITS, _LEAST_SECONDS = 3, 1e-7


@dataclass(frozen=True)
class Workload:
    """A function that is run to measure operations.

    Attributes:
        function: In JAX.
        shapes: Size → shapes of its arguments.
        kernels: Operation → kernels of the engine that carry it out.
    """

    function: Callable[..., Any]
    shapes: Callable[[int], Sequence[tuple[int, ...]]]
    kernels: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Sample:
    """What one call took.

    Attributes:
        bytes: Sent by all parties.
        messages: Sent by the party that sends most.
        messages_total: Sent by all parties.
        seconds: Of computation: the mean of the parties, and of all runs the median.
    """

    bytes: int
    messages: int
    messages_total: int
    seconds: float


def random_values(shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Values in (−1, 1), the same in every run."""
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def sample(run: Run, kernels: Sequence[str]) -> Sample:
    """What these kernels took in a run."""
    found = [counters for counters in run.of(kernels) if counters]
    every = [one for counters in found for one in counters]
    return Sample(
        bytes=sum(one.bytes for one in every),
        messages=sum(max(one.messages for one in counters) for counters in found),
        messages_total=sum(one.messages for one in every),
        seconds=sum(statistics.mean(one.seconds for one in counters) for counters in found),
    )


def take(bench: Bench, workload: Workload, kernels: Sequence[str], size: int, repeats: int) -> Sample:
    """Run a workload at one size: counts of the last run, the median of the seconds."""
    runs = bench.run(workload.function, random_values(workload.shapes(size)), times=repeats)
    samples = [sample(run, kernels) for run in runs]
    return replace(samples[-1], seconds=statistics.median(one.seconds for one in samples))


def line(sizes: Sequence[int], values: Sequence[float], *, tolerance: float) -> tuple[float, float]:
    """Value per call, and per element, through the smallest and the largest size.

    Args:
        sizes: Elements of a call, ascending.
        values: One for each.
        tolerance: How far the others may be off, relative.

    Raises:
        ProtocolError: They are further off: no line describes the engine.
    """
    element = (values[-1] - values[0]) / (sizes[-1] - sizes[0])
    call = values[0] - element * sizes[0]
    off = [(n, v) for n, v in zip(sizes, values, strict=True) if abs(call + element * n - v) > tolerance * abs(v)]
    if off:
        raise ProtocolError(
            "What the engine sends does not grow in a line with the elements of a call.",
            received=", ".join(f"{value:,.0f} bytes for {size:,} elements" for size, value in off),
            fix="Another version of the engine needs another cost model: report it with the engine's version.",
        )
    return round(call, 6), round(element, 6)


def solve(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Least squares without negative terms: what would be negative is 0, and the others are fitted again."""
    matrix, target = np.asarray(rows, np.float64), np.asarray(values, np.float64)
    used = list(range(matrix.shape[1]))
    while used:
        found = np.linalg.lstsq(matrix[:, used], target, rcond=None)[0]
        if (found >= 0).all():
            break
        used.pop(int(found.argmin()))
    result = np.zeros(matrix.shape[1])
    if used:
        result[used] = found
    return [float(value) for value in result]


def solve_seconds(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """The same for seconds, whose noise is a share of them: least squares of relative errors."""
    scaled = [[term / max(value, _LEAST_SECONDS) for term in row] for row, value in zip(rows, seconds, strict=True)]
    return [rounded(value) for value in solve(scaled, [1.0] * len(rows))]


def rounded(value: float) -> float:
    """Seconds to as many digits as mean anything."""
    return float(f"{value:.{_DIGITS}g}")
