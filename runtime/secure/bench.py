"""A session of simulated parties that measures single operations."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.engine import require_spu
from autorep_fx.runtime.secure.executables import compile_function
from autorep_fx.runtime.secure.in_memory import memory_links, together
from autorep_fx.runtime.secure.profile import Counters, OpCounter, parse_profile
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.slices import Sharing, Slice, engine_log

__all__ = ["Bench", "Run"]


@dataclass(frozen=True)
class Run:
    """One run of a function by all parties.

    Attributes:
        lines: What each line of the engine's log counts: a kernel of one party.
        seconds: At the slowest party.
    """

    lines: tuple[Counters, ...]
    seconds: float

    def of(self, kernels: Sequence[str]) -> list[list[OpCounter]]:
        """Per kernel, the counters of every party; which is whose, the log does not say."""
        return [[line.kernels[name] for line in self.lines if name in line.kernels] for name in kernels]


class Bench:
    """Parties in one process, which run one function after the other.

    Args:
        settings: Protocol settings.
        timeout: Seconds that a party waits for a message of another.

    Raises:
        EngineMissingError: The engine is not there.
    """

    def __init__(self, settings: Settings, *, timeout: float) -> None:
        require_spu()
        self.settings = settings
        self._log, self._sharing = engine_log(), Sharing(settings)
        self._names = (f"bench-{number}" for number in itertools.count())
        links = memory_links(settings.of.parties, timeout)
        self._slices = together(settings.of.parties, lambda rank: Slice(links(rank), settings))

    def run(self, function: Callable[..., Any], values: Sequence[Array], *, times: int = 1) -> list[Run]:
        """Run a function of secret values several times.

        Raises:
            PeerError: The parties waited for each other for too long.
        """
        import jax

        names = [next(self._names) for _ in values]
        for name, value in zip(names, values, strict=True):
            for part, share in zip(self._slices, self._sharing.make(value), strict=True):
                part.set(name, share)
        abstract = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in values]
        result = next(self._names)
        executable = compile_function(function, abstract, names, lambda i: f"{result}-{i}")
        for part in self._slices:
            part.store(executable)
        return [self._once(executable) for _ in range(times)]

    def _once(self, executable: Any) -> Run:
        self._log.new_text()
        start = time.perf_counter()
        together(self.settings.of.parties, lambda rank: self._slices[rank].run(executable))
        seconds = time.perf_counter() - start
        return Run(tuple(parse_profile(line) for line in self._log.new_text().splitlines()), seconds)
