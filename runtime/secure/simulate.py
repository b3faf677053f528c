"""All parties in one process: the engine's real protocol over links in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.engine import require_spu
from autorep_fx.runtime.secure.executables import Compiler, Executable, input_name, output_name, weight_name
from autorep_fx.runtime.secure.frames import frame
from autorep_fx.runtime.secure.in_memory import memory_links, together
from autorep_fx.runtime.secure.profile import Counters
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.results import Step, comparisons_of
from autorep_fx.runtime.secure.slices import Sharing, Slice, engine_log
from autorep_fx.runtime.secure.split import Split

__all__ = ["SimulatedSession"]

T = TypeVar("T")


class SimulatedSession:
    """A session of simulated parties: weights are shared and opened once, queries follow.

    Args:
        split: A split model.
        settings: Protocol settings.
        timeout: Seconds that a party waits for a message of another.

    Attributes:
        setup: What the set-up paid; None where there is none.

    Raises:
        EngineMissingError: The engine is not there.
        SecureProgramError: The program has operations without a form.
    """

    def __init__(self, split: Split, settings: Settings, *, timeout: float = 600.0) -> None:
        require_spu()
        self.settings = settings
        self.program = JaxProgram(split.program, settings)
        self.compiler = self._make_compiler()
        self._log, self._sharing = engine_log(), Sharing(settings)
        self._compiled: set[int] = set()
        links = memory_links(settings.of.parties, timeout)
        self._slices = self._together(lambda rank: Slice(links(rank), settings))
        weights = self.program.lay_out(split.weights)
        sent = sum(self._share(weight_name(i), value, settings.of.roles.index("server"))
                   for i, value in enumerate(weights))  # fmt: skip
        executable = self.compiler.setup()
        self.setup = Step(Counters(), 0.0, 0.0, 0, sent) if executable is None else self._run(executable, sent)

    def query(self, inputs: Sequence[Array]) -> tuple[tuple[Array, ...], Step]:
        """Run the program on one batch.

        Returns:
            The outputs, and what they cost.

        Raises:
            DataError: The inputs do not fit.
            PeerError: The parties waited for each other for too long.
        """
        feed = self.program.feed(*inputs)
        client = self.settings.of.roles.index("client")
        sent = sum(self._share(input_name(i), value, client) for i, value in enumerate(feed))
        step = self._compute([value.shape for value in feed], sent)
        outputs, returned = [], 0
        for index in range(len(self.program.public.outputs)):
            shares = [part.get(output_name(index)) for part in self._slices]
            returned += sum(len(frame(share)) for rank, share in enumerate(shares) if rank != client)
            outputs.append(self._sharing.open(shares))
        whole = Step(step.counters, step.seconds, step.compile_seconds, step.comparisons, sent + returned)
        return tuple(outputs), whole

    def _make_compiler(self) -> Compiler:
        return Compiler(self.program, self.settings)

    def _compute(self, shapes: Sequence[tuple[int, ...]], sent: int) -> Step:
        """Run the query on what was shared."""
        return self._run(self.compiler.query(shapes), sent)

    def _share(self, name: str, value: Array, owner: int) -> int:
        """Give every party its share; returns the bytes that would travel."""
        shares = self._sharing.make(value)
        for part, share in zip(self._slices, shares, strict=True):
            part.set(name, share)
        return sum(len(frame(share)) for rank, share in enumerate(shares) if rank != owner)

    def _run(self, executable: Executable, sent: int) -> Step:
        self._log.new_text()
        stored = max(self._together(lambda rank: self._slices[rank].store(executable)))
        seconds = max(self._together(lambda rank: self._slices[rank].run(executable)))
        counters = self._log.counters(self.settings.of.parties)
        first = id(executable) not in self._compiled
        self._compiled.add(id(executable))
        comparisons = comparisons_of(counters, self.settings, executable.comparisons)
        return Step(counters, seconds, executable.seconds + stored if first else 0.0, comparisons, sent)

    def _together(self, function: Callable[[int], T]) -> list[T]:
        return together(self.settings.of.parties, function)
