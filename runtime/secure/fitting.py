"""Costs from samples, and the computation of what sends nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from autorep_fx.cost.profile import Compute, OperationCost
from autorep_fx.runtime.secure.bench import Bench
from autorep_fx.runtime.secure.measurements import Sample, line, random_values, solve_seconds

__all__ = ["fit_elements", "measure_local", "on_machine"]

# Sums in a chain whose computation is measured.
_CHAIN = 12


def fit_elements(sizes: Sequence[int], samples: Sequence[Sample], source: str, *, tolerance: float) -> OperationCost:
    """Costs per call and per element."""
    call, element = line(sizes, [sample.bytes for sample in samples], tolerance=tolerance)
    each, more = solve_seconds([(1.0, size) for size in sizes], [sample.seconds for sample in samples])
    first = samples[0]
    return OperationCost(
        bytes=element, call=call, messages=first.messages, messages_total=first.messages_total, status="measured",
        source=f"{source}; {', '.join(f'{size:,}' for size in sizes)} elements",
        seconds=Compute(call=each, element=more, status="measured", source=on_machine()),
    )  # fmt: skip


def measure_local(bench: Bench, sizes: Sequence[int], source: str, repeats: int) -> Compute:
    """Computation of what sends nothing: per call, per element, and per public index of a gather.

    A single sum is what any program takes, and is left out.
    """
    single = _wall(bench, lambda x: x + x, sizes[0], repeats)
    chain = [_wall(bench, _sums, size, repeats) for size in sizes]
    call, element = solve_seconds([(_CHAIN, _CHAIN * size) for size in sizes], [max(t - single, 0) for t in chain])
    gathers = [_wall(bench, _gathers(size), size, repeats) for size in sizes]
    more = [max(b - a, 0) for a, b in zip(chain, gathers, strict=True)]
    [index] = solve_seconds([(_CHAIN // 2 * size,) for size in sizes[1:]], more[1:])  # of few, a call is all of it
    return Compute(
        call=call, element=element, index=index, status="measured", source=f"{source}; {on_machine()}"
    )  # fmt: skip


def _wall(bench: Bench, function: Callable[..., Any], size: int, repeats: int) -> float:
    return sorted(run.seconds for run in bench.run(function, random_values([(size,)]), times=repeats))[repeats // 2]


def _sums(x: Any) -> Any:
    """As many sums of a value and a part of itself."""
    import jax.numpy as jnp

    for step in range(_CHAIN // 2):
        x = x + jnp.concatenate([x[step + 1 :], x[: step + 1]])
    return x


def _gathers(size: int) -> Callable[[Any], Any]:
    """The same sums, of which one half reads at public positions."""
    import numpy as np

    from autorep_fx.runtime.secure.ops.indexing import take as gather

    places = [np.random.default_rng(step).permutation(size) for step in range(_CHAIN // 2)]

    def function(x: Any) -> Any:
        for place in places:
            x = x + gather(x, place, 0)
        return x

    return function


def on_machine() -> str:
    """Where seconds were measured."""
    return f"simulated parties in one process, {os.cpu_count()} cores"
