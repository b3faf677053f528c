"""Predict what a model costs under a protocol: bytes, messages, rounds and time, per node and in total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autorep_fx.cost.charge import Charge, Reserves, charge
from autorep_fx.cost.network import Network
from autorep_fx.cost.primitives import Work
from autorep_fx.cost.profile import ProtocolProfile

__all__ = ["NodePrediction", "Prediction", "predict", "predict_session"]


@dataclass(frozen=True)
class NodePrediction:
    """What one node costs in a query, or several that are one call.

    Attributes:
        name: Node name.
        operator: ONNX operator, with their number where several nodes are one call.
        comparisons: Comparisons that the engine makes.
        bytes: Over all parties; None where the profile or the table of operators does not tell.
        messages: One after another; None likewise.
    """

    name: str
    operator: str
    comparisons: int
    bytes: int | None
    messages: int | None


@dataclass(frozen=True)
class Prediction:
    """What a query costs under a protocol.

    Attributes:
        protocol: Its name.
        verified: Whether all constants were measured or quoted.
        note: What a reader must know of the protocol's figures.
        parties: Parties that compute.
        nodes: Every node that costs anything, or of which that is not known.
        comparisons: Comparisons that the engine makes, of the operators that the table knows.
        comparisons_complete: Whether it knows all of them.
        bytes: Over all parties for one query; None if one node's are not known.
        known_bytes: The same for what is known.
        messages: Of a query, in the order in which the engine works; None if one node's are not known.
        messages_total: Messages of all parties together; None if one node's are not known.
        rounds: Messages on the longest path, if calls that are independent ran at once; None likewise.
        setup_bytes: Over all parties, once for a session; opening the weights included.
        setup_messages: Once for a session.
        compute_seconds: Computation of a query, as the profile measured it; None where it did not.
        unknown: Operators and operations of which the cost is not known, each with the number of nodes.
    """

    protocol: str
    verified: bool
    note: str
    parties: int
    nodes: tuple[NodePrediction, ...]
    comparisons: int
    comparisons_complete: bool
    bytes: int | None
    known_bytes: int
    messages: int | None
    messages_total: int | None
    rounds: int | None
    setup_bytes: int
    setup_messages: int
    compute_seconds: float | None
    unknown: dict[str, int]

    def link_seconds(self, network: Network) -> float | None:
        """Time that a query spends on the network, without computation: bytes spread evenly over the parties."""
        if self.bytes is None or self.messages is None:
            return None
        return network.seconds(self.bytes / self.parties, self.messages)

    def seconds(self, network: Network) -> float | None:
        """Time of a query: computation, and then the network; None where one of both is not known."""
        link = self.link_seconds(network)
        return None if link is None or self.compute_seconds is None else link + self.compute_seconds

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def predict(
    work: Sequence[Work], name: str, protocol: ProtocolProfile, *, reserves: Reserves | None = None
) -> Prediction:
    """Apply a protocol's costs to the work of a model.

    Args:
        work: As of :func:`autorep_fx.cost.primitives.secure_work`.
        name: Name of the protocol.
        protocol: Its costs.
        reserves: What earlier queries left to draw from, which is updated; None for the mean of many queries.
    """
    unknown: Counter[str] = Counter()
    for item in work:
        unknown.update(dict.fromkeys(_missing(item, protocol), item.nodes))
    charged = [
        (item, [charge(p, protocol.operations[p.operation], protocol.parties, reserves)
                for p in item.primitives or () if p.operation in protocol.operations])
        for item in work
    ]  # fmt: skip
    charges = [one for _, ones in charged for one in ones]
    nodes = [_node(item, ones, protocol) for item, ones in charged if ones or _missing(item, protocol)]
    known = sum(one.bytes for one in charges)
    counted = all(node.messages is not None for node in nodes)
    return Prediction(
        protocol=name, verified=protocol.verified, note=protocol.note, parties=protocol.parties, nodes=tuple(nodes),
        comparisons=sum(node.comparisons for node in nodes),
        comparisons_complete=all(item.primitives is not None for item in work), bytes=None if unknown else round(known),
        known_bytes=round(known),
        messages=round(sum(one.messages or 0 for one in charges)) if counted else None,
        messages_total=None if unknown else _total(charges),
        rounds=_longest(work, nodes) if counted else None,
        setup_bytes=round(protocol.setup_bytes + sum(one.opening for one in charges)),
        setup_messages=protocol.setup_messages, compute_seconds=_compute(charged, protocol, bool(unknown)),
        unknown=dict(unknown),
    )  # fmt: skip


def predict_session(queries: Sequence[Sequence[Work]], name: str, protocol: ProtocolProfile) -> list[Prediction]:
    """The same for every query of one session, with the batches of reserves where they are made."""
    reserves: Reserves = {}
    return [predict(work, name, protocol, reserves=reserves) for work in queries]


def _node(item: Work, ones: Sequence[Charge], protocol: ProtocolProfile) -> NodePrediction:
    comparisons = sum(p.result for p in item.primitives or () if p.operation == "compare")
    if _missing(item, protocol):
        return NodePrediction(item.name, item.title, comparisons, None, None)
    messages = [one.messages for one in ones]
    counted = None if None in messages else round(sum(m or 0 for m in messages))
    return NodePrediction(item.name, item.title, comparisons, round(sum(one.bytes for one in ones)), counted)


def _missing(item: Work, protocol: ProtocolProfile) -> list[str]:
    if item.primitives is None:
        return [item.operator]
    absent = {p.operation for p in item.primitives} - set(protocol.operations)
    return [f"{item.operator} ({operation})" for operation in sorted(absent)]


def _total(charges: Sequence[Charge]) -> int | None:
    counted = [one.messages_total for one in charges if one.messages_total is not None]
    return round(sum(counted)) if len(counted) == len(charges) else None


def _compute(
    charged: Sequence[tuple[Work, Sequence[Charge]]], protocol: ProtocolProfile, unknown: bool
) -> float | None:
    """Seconds of all operations and of what sends nothing; None where one of them was not measured."""
    seconds = [one.seconds for _, ones in charged for one in ones]
    if unknown or protocol.local is None or None in seconds:
        return None
    local = sum(
        item.local_calls * protocol.local.call + item.local_elements * protocol.local.element
        + item.indices * protocol.local.index
        for item, _ in charged
    )  # fmt: skip
    return sum(one or 0.0 for one in seconds) + local


def _longest(work: Sequence[Work], nodes: Sequence[NodePrediction]) -> int:
    """Messages on the longest path through the graph."""
    own = {(node.name, node.operator): node.messages or 0 for node in nodes}
    reached: dict[str, int] = {}
    for item in work:
        before = max((reached.get(name, 0) for name in item.inputs), default=0)
        reached.update(dict.fromkeys(item.outputs, before + own.get((item.name, item.title), 0)))
    return max(reached.values(), default=0)
