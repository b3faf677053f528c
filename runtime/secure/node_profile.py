"""What each operation of a secure run was predicted to cost, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from autorep_fx.cost.joint import PART_OF_NORM
from autorep_fx.runtime.secure.calls import calls_of
from autorep_fx.runtime.secure.prediction import NodeCost
from autorep_fx.runtime.secure.profile import OpCounter
from autorep_fx.runtime.secure.profiled import Measured
from autorep_fx.runtime.secure.public import Node

__all__ = ["PUBLIC_NUMBERS", "Row", "RunProfile", "profile_of"]

#: Row of what is sent to share public numbers, such as the zeros around a convolution. An operation that runs alone
#: shares its own; in a whole query they are shared once. They are no operation's, and not predicted.
PUBLIC_NUMBERS = "public numbers"
_SHARES_PUBLIC = "p2a"  # the engine's kernel that does it


@dataclass(frozen=True)
class Row:
    """One operation, or one call of a module, over all queries.

    Attributes:
        name: Node name, or the name of the call.
        operator: ONNX operator, with their number where several nodes are one call; empty for a call of a module.
        call: The call that the node belongs to; an activation's is a site.
        comparisons: Comparisons that the engine made.
        predicted_bytes: By the cost model, over all parties; None where it does not know.
        measured_bytes: By the engine's counters, over all parties.
        bytes_by_query: The same, for each query.
        predicted_messages: By the cost model, of the party that sends most; None where it does not know.
        messages_of_one: By the engine's counters, of the party that sends most.
        messages: The same, of all parties together.
        seconds: Of the slowest party.
    """

    name: str
    operator: str
    call: str
    comparisons: int
    predicted_bytes: int | None
    measured_bytes: int
    bytes_by_query: tuple[int, ...]
    predicted_messages: int | None
    messages_of_one: int
    messages: int
    seconds: float

    def __add__(self, other: Row) -> Row:
        def known(a: int | None, b: int | None) -> int | None:
            return None if a is None or b is None else a + b

        return replace(
            self,
            comparisons=self.comparisons + other.comparisons,
            predicted_bytes=known(self.predicted_bytes, other.predicted_bytes),
            measured_bytes=self.measured_bytes + other.measured_bytes,
            bytes_by_query=tuple(a + b for a, b in zip(self.bytes_by_query, other.bytes_by_query, strict=True)),
            predicted_messages=known(self.predicted_messages, other.predicted_messages),
            messages_of_one=self.messages_of_one + other.messages_of_one,
            messages=self.messages + other.messages,
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class RunProfile:
    """All operations of a run.

    Attributes:
        nodes: Every operation on secret values, in order; last what public numbers cost, if anything.
        calls: The same by call of a module.
        sites: Names of the sites that the model file lists: activations and pools.
    """

    nodes: tuple[Row, ...]
    calls: tuple[Row, ...]
    sites: tuple[str, ...]

    @property
    def total(self) -> Row:
        """The sum over all operations."""
        return _sum(self.nodes, "total")

    def _has_site(self, call: str) -> bool:
        """Whether a call is a site, or calls one as a function: ``pool.max_pool2d`` is called by ``pool``."""
        return any(site == call or site.startswith(f"{call}.") for site in self.sites)

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {
            "nodes": [asdict(row) for row in self.nodes],
            "calls": [{**asdict(row), "site": self._has_site(row.name)} for row in self.calls],
            "total": asdict(self.total),
        }


def profile_of(
    measured: Sequence[Sequence[Measured]], predicted: Sequence[Mapping[str, NodeCost]], sites: Sequence[str],
    nodes: Sequence[Node],
) -> RunProfile:  # fmt: skip
    """Put what was measured beside what was predicted.

    Nodes that ran as one call are one row, of the first of them and of its site.

    Args:
        measured: For every query, its operations.
        predicted: For every query, the cost of each node by the first value that it makes.
        sites: Names of sites as the model file lists them.
        nodes: Of the public program, in its order, which tells the calls of a module apart; they may run in another.
    """
    rows = _by_value(measured, predicted, [node.name for node in nodes])
    calls = calls_of([row.name for row in rows], sites)
    found = [replace(row, call=call) for row, call in zip(rows, calls, strict=True)]
    public = [_public(item, number, len(measured)) for number, query in enumerate(measured) for item in query]
    found += [_sum(public, PUBLIC_NUMBERS)] if any(row.measured_bytes for row in public) else []
    by_call: dict[str, list[Row]] = {}
    for row in found:
        by_call.setdefault(row.call, []).append(row)
    return RunProfile(tuple(found), tuple(_sum(part, name) for name, part in by_call.items()), tuple(sites))


def _by_value(
    measured: Sequence[Sequence[Measured]], predicted: Sequence[Mapping[str, NodeCost]], order: Sequence[str]
) -> list[Row]:
    """A row per node of the file, over all queries, in the ``order`` of the program's nodes."""
    places = {name: place for place, name in enumerate(order)}
    rows: dict[str, tuple[int, Row]] = {}
    for number, (query, costs) in enumerate(zip(measured, predicted, strict=True)):
        seen = set()
        for item in query:
            value = item.node.outputs[0]
            value = value if value in costs else value.removesuffix(PART_OF_NORM)
            row = _row(item, costs.get(value), number, len(measured), first=value not in seen)
            seen.add(value)
            place, before = rows.get(value, (places[item.node.name], None))
            rows[value] = place, row if before is None else before + row
    return [row for _, row in sorted(rows.values(), key=lambda found: found[0])]


def _row(item: Measured, cost: NodeCost | None, number: int, queries: int, *, first: bool) -> Row:
    """One operation of one query; what is predicted is said once, of the first of the operations of a node."""
    own = item.step.counters
    shared = own.kernels.get(_SHARES_PUBLIC, OpCounter())
    sent = own.bytes - shared.bytes
    name, operator = (item.node.name, item.node.operator) if cost is None else (cost.name, cost.operator)
    told: tuple[int | None, int | None] = (None, None) if cost is None else (cost.bytes, cost.messages)
    return Row(
        name or item.node.name, operator, "", item.step.comparisons, told[0] if first else 0, sent,
        _at(number, queries, sent), told[1] if first else 0,
        item.messages_of_one - shared.messages // max(own.ranks, 1), own.messages - shared.messages, item.step.seconds,
    )  # fmt: skip


def _public(item: Measured, number: int, queries: int) -> Row:
    own = item.step.counters
    shared = own.kernels.get(_SHARES_PUBLIC, OpCounter())
    return Row(
        PUBLIC_NUMBERS, "", PUBLIC_NUMBERS, 0, 0, shared.bytes, _at(number, queries, shared.bytes), 0,
        shared.messages // max(own.ranks, 1), shared.messages, 0.0,
    )  # fmt: skip


def _at(number: int, queries: int, value: int) -> tuple[int, ...]:
    return tuple(value if i == number else 0 for i in range(queries))


def _sum(rows: Sequence[Row], name: str) -> Row:
    result = rows[0]
    for row in rows[1:]:
        result += row
    return replace(result, name=name, operator="", call=name)
