"""What the cost model says of the queries of a session, to be held against what the engine sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autorep_fx.cost.charge import Reserves
from autorep_fx.cost.onnx_count import load_model
from autorep_fx.cost.predict import predict, predict_session
from autorep_fx.cost.primitives import secure_work
from autorep_fx.cost.profile import load_profile
from autorep_fx.runtime.secure.protocols import Settings

__all__ = ["NodeCost", "predicted_bytes", "predicted_nodes"]


@dataclass(frozen=True)
class NodeCost:
    """What one node is predicted to cost in a query.

    Attributes:
        name: Node name.
        operator: ONNX operator, with their number where several nodes are one call.
        bytes: Over all parties; None where the profile does not tell.
        messages: Of the party that sends most; None likewise.
    """

    name: str
    operator: str
    bytes: int | None
    messages: int | None


def predicted_bytes(path: Path | str, batches: Sequence[int], settings: Settings) -> tuple[int | None, str]:
    """Bytes of all queries of a session, over all parties; the first query opens the weights.

    Args:
        path: The ONNX file.
        batches: Samples of each query.
        settings: Protocol settings.

    Returns:
        The bytes, or None and the reason.

    Raises:
        ModelFileError: The file is not valid.
    """
    profile = load_profile()
    if not _has(settings):
        return None, f"predicted_bytes is null: {profile.name} has no {settings.protocol} of {settings.ring_bits} bits"
    model, costs = load_model(path), profile.protocol(settings.protocol)
    work = {
        batch: secure_work(model, batch, protocol=settings.protocol, ring_bits=settings.ring_bits)
        for batch in set(batches)
    }
    queries = predict_session([work[batch] for batch in batches], settings.protocol, costs)
    if queries[0].bytes is None:
        return None, f"predicted_bytes is null: {profile.name} has no cost of {', '.join(queries[0].unknown)}"
    opened = queries[0].setup_bytes - costs.setup_bytes
    return opened + sum(query.bytes or 0 for query in queries), ""


def predicted_nodes(path: Path | str, batches: Sequence[int], settings: Settings) -> list[Mapping[str, NodeCost]]:
    """The same for every node and query, by the first value that the node makes.

    Raises:
        ModelFileError: The file is not valid.
    """
    if not _has(settings):
        return [{} for _ in batches]
    model, costs = load_model(path), load_profile().protocol(settings.protocol)
    result: list[Mapping[str, NodeCost]] = []
    reserves: Reserves = {}
    for number, batch in enumerate(batches):
        work = secure_work(model, batch, protocol=settings.protocol, ring_bits=settings.ring_bits)
        found = {}
        for item in work:
            one = predict([item], settings.protocol, costs, reserves=reserves)
            opened = one.setup_bytes - costs.setup_bytes if number == 0 else 0
            spent = None if one.bytes is None else one.bytes + opened
            found[item.outputs[0]] = NodeCost(item.name, item.title, spent, one.messages)
        result.append(found)
    return result


def _has(settings: Settings) -> bool:
    """Whether the profile that comes with the package has the protocol, with this ring."""
    profile = load_profile()
    return settings.protocol in profile.protocols and settings.ring_bits == profile.fixed_point.ring_bits
