"""A session that measures every operation of a query for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autorep_fx.runtime.secure.executables import Compiler
from autorep_fx.runtime.secure.pieces import Piece, PieceCompiler
from autorep_fx.runtime.secure.profile import total
from autorep_fx.runtime.secure.public import Node
from autorep_fx.runtime.secure.results import Step
from autorep_fx.runtime.secure.simulate import SimulatedSession

__all__ = ["Measured", "ProfiledSession"]


@dataclass(frozen=True)
class Measured:
    """What one operation of a query cost.

    Attributes:
        node: The operation.
        step: The engine's counters, summed over all ranks, and the seconds of the slowest party.
    """

    node: Node
    step: Step

    @property
    def messages_of_one(self) -> int:
        """Messages of the party that sent most."""
        return max(self.step.counters.by_run, default=0)


class ProfiledSession(SimulatedSession):
    """Simulated parties that run a query operation by operation.

    Values stay shared, at the engine, between operations, and opened weights stay opened, as within one program.

    Attributes:
        measured: For every query, its operations in order.
    """

    measured: list[list[Measured]]

    def _make_compiler(self) -> Compiler:
        self.measured = []
        self._pieces: dict[tuple[tuple[int, ...], ...], list[Piece]] = {}
        self._piecewise = PieceCompiler(self.program, self.settings)
        return self._piecewise

    def _compute(self, shapes: Sequence[tuple[int, ...]], sent: int) -> Step:
        key = tuple(shapes)
        if key not in self._pieces:
            self._pieces[key] = self._piecewise.pieces(key)
        found = [Measured(piece.node, self._run(piece.executable, 0)) for piece in self._pieces[key]]
        self.measured.append(found)
        steps = [item.step for item in found]
        return Step(
            total(step.counters for step in steps), sum(step.seconds for step in steps),
            sum(step.compile_seconds for step in steps), sum(step.comparisons for step in steps), sent,
        )  # fmt: skip
