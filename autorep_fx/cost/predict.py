"""Predict what a model costs under a protocol: bytes, messages, rounds and time, per node and in total."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autorep_fx.cost.network import Network
from autorep_fx.cost.primitives import Primitive, Work
from autorep_fx.cost.profile import OperationCost, ProtocolProfile

__all__ = ["NodePrediction", "Prediction", "predict"]


@dataclass(frozen=True)
class NodePrediction:
    """What one node costs in a query.

    Attributes:
        name: Node name.
        operator: ONNX operator.
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
        comparisons: Comparisons that the engine makes.
        bytes: Over all parties for one query; None if one node's are not known.
        known_bytes: The same for what is known.
        messages: Of a query, in the order in which the engine works; None if one node's are not known.
        rounds: Messages on the longest path, if what is independent ran at once; None likewise.
        setup_bytes: Over all parties, once for a session; opening the weights included.
        setup_messages: Once for a session.
        unknown: Operators and operations of which the cost is not known, each with the number of nodes.
    """

    protocol: str
    verified: bool
    note: str
    parties: int
    nodes: tuple[NodePrediction, ...]
    comparisons: int
    bytes: int | None
    known_bytes: int
    messages: int | None
    rounds: int | None
    setup_bytes: int
    setup_messages: int
    unknown: dict[str, int]

    def link_seconds(self, network: Network) -> float | None:
        """Time that a query spends on the network, without computation: bytes spread evenly over the parties."""
        if self.bytes is None or self.messages is None:
            return None
        return network.seconds(self.bytes / self.parties, self.messages)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def predict(work: Sequence[Work], name: str, protocol: ProtocolProfile) -> Prediction:
    """Apply a protocol's costs to the work of a model.

    Args:
        work: As of :func:`autorep_fx.cost.primitives.secure_work`.
        name: Name of the protocol.
        protocol: Its costs.
    """
    nodes, unknown, known_bytes = [], dict[str, int](), 0.0
    setup_bytes, setup_messages = float(protocol.setup_bytes), protocol.setup_messages
    for item in work:
        missing = _missing(item, protocol)
        for text in missing:
            unknown[text] = unknown.get(text, 0) + 1
        primitives = item.primitives or ()
        pairs = [(p, protocol.operations[p.operation]) for p in primitives if p.operation in protocol.operations]
        spent = sum(_bytes(*pair) for pair in pairs)
        for primitive, cost in pairs:
            if primitive.weight and cost.right:
                setup_bytes += primitive.right * cost.right
                setup_messages += 1
        known_bytes += spent
        if pairs or missing:
            comparisons = sum(p.result for p in primitives if p.operation == "compare")
            told = (None, None) if missing else (round(spent), _messages(pairs))
            nodes.append(NodePrediction(item.name, item.operator, comparisons, *told))
    counted = all(node.messages is not None for node in nodes)
    return Prediction(
        protocol=name, verified=protocol.verified, note=protocol.note, parties=protocol.parties, nodes=tuple(nodes),
        comparisons=sum(node.comparisons for node in nodes), bytes=None if unknown else round(known_bytes),
        known_bytes=round(known_bytes),
        messages=sum(node.messages or 0 for node in nodes) if counted else None,
        rounds=_longest(work, nodes) if counted else None, setup_bytes=round(setup_bytes),
        setup_messages=setup_messages, unknown=unknown,
    )  # fmt: skip


def _missing(item: Work, protocol: ProtocolProfile) -> list[str]:
    if item.primitives is None:
        return [item.operator]
    absent = {p.operation for p in item.primitives} - set(protocol.operations)
    return [f"{item.operator} ({operation})" for operation in sorted(absent)]


def _bytes(primitive: Primitive, cost: OperationCost) -> float:
    """Of a query of a session, which has opened the weights."""
    factors = primitive.left * cost.left + (0 if primitive.weight else primitive.right * cost.right)
    return factors + primitive.result * (cost.bytes + cost.result)


def _messages(pairs: Iterable[tuple[Primitive, OperationCost]]) -> int | None:
    total = 0
    for primitive, cost in pairs:
        if cost.messages is None:
            return None
        total += primitive.steps * cost.messages
    return total


def _longest(work: Sequence[Work], nodes: Sequence[NodePrediction]) -> int:
    """Messages on the longest path through the graph."""
    own = {(node.name, node.operator): node.messages or 0 for node in nodes}
    reached: dict[str, int] = {}
    for item in work:
        before = max((reached.get(name, 0) for name in item.inputs), default=0)
        reached.update(dict.fromkeys(item.outputs, before + own.get((item.name, item.operator), 0)))
    return max(reached.values(), default=0)
