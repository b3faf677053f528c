"""What the engine says of a run: its own counters, read from its log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counters", "OpCounter", "parse_profile", "total"]

_OP = re.compile(
    r"- (?P<name>\S[^,]*), executed (?P<calls>\d+) times, duration (?P<seconds>[-+.\de]+)s, send bytes (?P<bytes>\d+) "
    r"recv bytes \d+, send actions (?P<messages>\d+)"
)
_LINK = re.compile(r"Link details: total send bytes (?P<bytes>\d+), recv bytes \d+, send actions (?P<messages>\d+)")
_LAYER = "pphlo."


@dataclass(frozen=True)
class OpCounter:
    """Counters of one kind of operation.

    Attributes:
        calls: How often it ran, over all ranks counted.
        seconds: Seconds in it, summed over these ranks.
        bytes: Payload bytes sent by them.
        messages: Messages sent by them.
    """

    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    messages: int = 0

    def __add__(self, other: OpCounter) -> OpCounter:
        return OpCounter(
            self.calls + other.calls, self.seconds + other.seconds, self.bytes + other.bytes,
            self.messages + other.messages,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {"calls": self.calls, "seconds": self.seconds, "bytes": self.bytes, "messages": self.messages}


@dataclass(frozen=True)
class Counters:
    """The engine's counters of a run.

    Attributes:
        bytes: Payload bytes sent, by all ranks that were counted.
        messages: Messages sent by them; the engine calls them actions, and they are no rounds.
        ranks: Runs that were counted, one per rank and run.
        operations: Operation of the engine's program → counters.
        kernels: Kernel of the protocol, or of the layer between, → counters.
        by_run: Messages of each run that was counted, in the order in which the engine wrote them down; it is not
            part of :meth:`to_json`.
    """

    bytes: int = 0
    messages: int = 0
    ranks: int = 0
    operations: dict[str, OpCounter] = field(default_factory=dict)
    kernels: dict[str, OpCounter] = field(default_factory=dict)
    by_run: tuple[int, ...] = ()

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.bytes + other.bytes, self.messages + other.messages, self.ranks + other.ranks,
            _merged(self.operations, other.operations), _merged(self.kernels, other.kernels),
            self.by_run + other.by_run,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As a mapping, without what neither sent nor took a millisecond."""
        return {
            "bytes": self.bytes, "messages": self.messages, "ranks": self.ranks,
            "operations": {n: c.to_json() for n, c in self.operations.items() if c.bytes or c.seconds > 1e-3},
            "kernels": {n: c.to_json() for n, c in self.kernels.items() if c.bytes or c.seconds > 1e-3},
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Counters:
        """Read what :meth:`to_json` wrote."""
        operations, kernels = (
            {str(n): OpCounter(int(c["calls"]), float(c["seconds"]), int(c["bytes"]), int(c["messages"]))
             for n, c in value[key].items()}
            for key in ("operations", "kernels")
        )  # fmt: skip
        return cls(int(value["bytes"]), int(value["messages"]), int(value["ranks"]), operations, kernels)


def _merged(a: dict[str, OpCounter], b: dict[str, OpCounter]) -> dict[str, OpCounter]:
    return {name: a.get(name, OpCounter()) + b.get(name, OpCounter()) for name in {**a, **b}}


def total(counters: Iterable[Counters]) -> Counters:
    """The sum of counters."""
    return sum(counters, Counters())


def parse_profile(text: str) -> Counters:
    """Counters of all runs in a part of the engine's log."""
    result = Counters()
    for line in text.splitlines():
        found = _OP.search(line)
        if found:
            name = found["name"]
            one = {name: OpCounter(
                int(found["calls"]), float(found["seconds"]), int(found["bytes"]), int(found["messages"])
            )}  # fmt: skip
            result += Counters(operations=one) if name.startswith(_LAYER) else Counters(kernels=one)
            continue
        found = _LINK.search(line)
        if found:
            messages = int(found["messages"])
            result += Counters(int(found["bytes"]), messages, 1, by_run=(messages,))
    return result
