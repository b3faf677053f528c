"""What one operation on many elements is charged: bytes, messages and computation."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass, replace

from autorep_fx.cost.profile import OperationCost, Reserve
from autorep_fx.cost.rules import Primitive

__all__ = ["Charge", "Reserves", "charge"]

#: Elements that are left of what an operation draws from, by operation and piece of a call; each query changes it.
Reserves = MutableMapping[tuple[str, int], float]

# Ciphertexts of a product travel one behind the other, and only those that come back wait for those that go.
_REQUEST_RESPONSE = 2.0


@dataclass(frozen=True)
class Charge:
    """Cost of one operation.

    Attributes:
        bytes: Over all parties, of a query of a session that has opened the weights.
        opening: Over all parties, once for a session: weights that it opens.
        messages: One after another, of the party that sends most; None where nobody counted.
        messages_total: Of all parties together; None likewise.
        seconds: Computation; None where nobody measured.
    """

    bytes: float
    opening: float
    messages: float | None
    messages_total: float | None
    seconds: float | None


def charge(primitive: Primitive, cost: OperationCost, parties: int, reserves: Reserves | None = None) -> Charge:
    """Charge an operation.

    Args:
        primitive: The operation.
        cost: What it costs.
        parties: Parties that compute.
        reserves: What is left to draw from, which is updated; None for the mean of many queries.
    """
    if cost.packing is not None:
        sent = cost.packing.party_bytes(*primitive.matrices) * primitive.calls
        total = float(cost.packing.party_messages(*primitive.matrices) * primitive.calls * parties)
        return Charge(sent * parties, 0.0, _REQUEST_RESPONSE * primitive.calls, total, _seconds(primitive, cost))
    opening = primitive.right * cost.right
    sent = primitive.left * cost.left + (0 if primitive.weight else opening)
    sent += primitive.result * (cost.bytes + cost.result) + primitive.calls * cost.call
    found = Charge(
        bytes=sent, opening=opening if primitive.weight else 0.0,
        messages=None if cost.messages is None else float(primitive.calls * cost.messages),
        messages_total=None if cost.messages_total is None
        else float(primitive.calls * _pieces(primitive, cost) * (cost.messages_total + _more(primitive, cost))),
        seconds=_seconds(primitive, cost),
    )  # fmt: skip
    return found if cost.reserve is None else _drawn(found, primitive, cost, cost.reserve, reserves)


def _drawn(
    plain: Charge, primitive: Primitive, cost: OperationCost, reserve: Reserve, reserves: Reserves | None
) -> Charge:
    """With the batches of the reserve that it makes, or with direct pieces where the call is large."""
    size = primitive.result // primitive.calls
    if reserve.direct_from is not None and size >= reserve.direct_from:
        pieces = primitive.calls * 2 * math.ceil(size / 2 / reserve.direct_elements)
        direct = replace(plain, bytes=0.0, messages=float(primitive.calls * reserve.serial), messages_total=0.0)
        return _with(direct, pieces, reserve.direct_bytes, reserve.direct_messages, 0, cost)
    batches = primitive.result / reserve.elements
    if reserves is not None:
        pieces = _pieces(primitive, cost)
        batches = sum(
            _made((primitive.operation, piece), math.ceil(size / pieces), reserve, reserves)
            for _ in range(primitive.calls) for piece in range(pieces)
        )  # fmt: skip
    return _with(plain, batches, reserve.bytes, reserve.messages, reserve.serial, cost)


def _made(drawer: tuple[str, int], size: int, reserve: Reserve, reserves: Reserves) -> int:
    """Draw ``size`` elements; returns the batches that are made for them. Each piece of a call has its own reserve."""
    left = reserves.get(drawer, reserve.left)
    made = 0 if left >= size else math.ceil(size / reserve.elements)
    reserves[drawer] = left + made * reserve.elements - size
    return made


def _with(plain: Charge, count: float, sent: float, messages: int, serial: int, cost: OperationCost) -> Charge:
    """A charge with ``count`` batches or pieces added, each of so many bytes and messages of all parties."""
    batch = cost.seconds.batch if cost.seconds is not None else 0.0
    return replace(
        plain, bytes=plain.bytes + count * sent,
        messages=None if plain.messages is None else plain.messages + count * serial,
        messages_total=None if plain.messages_total is None else plain.messages_total + count * messages,
        seconds=None if plain.seconds is None else plain.seconds + count * batch,
    )  # fmt: skip


def _pieces(primitive: Primitive, cost: OperationCost) -> int:
    """Into how many pieces the engine cuts one call."""
    if cost.split is None:
        return 1
    return min(cost.split.most, math.ceil(primitive.result / primitive.calls / cost.split.elements))


def _more(primitive: Primitive, cost: OperationCost) -> int:
    """Messages of a piece beyond the usual, for its size."""
    if cost.split is None or cost.split.chunk is None:
        return 0
    size = math.ceil(primitive.result / primitive.calls / _pieces(primitive, cost))
    return math.ceil(size / cost.split.chunk) - 1


def _seconds(primitive: Primitive, cost: OperationCost) -> float | None:
    if cost.seconds is None:
        return None
    each, calls = cost.seconds, primitive.calls
    found = calls * each.call + primitive.result * each.element + primitive.result * primitive.inner * each.multiply
    if cost.packing is not None:
        blocks, rotations = (of(*primitive.matrices) for of in (cost.packing.blocks, cost.packing.rotations))
        found += calls * (blocks * each.ciphertext + rotations * each.rotation)
    return found
