"""Protocols: who takes part, whom they trust, and the settings that all parties have to share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autorep_fx.errors import ProtocolError, did_you_mean

__all__ = ["DEFAULT_BY_PARTIES", "PROTOCOLS", "Protocol", "Settings", "threat_table"]

#: Fraction bits by ring bits, as the engine has them.
_FRACTION = {32: 8, 64: 18, 128: 26}


@dataclass(frozen=True)
class Protocol:
    """A protocol of the engine, and its threat model.

    Attributes:
        name: Name in commands.
        kind: Name in the engine.
        roles: Role of each rank.
        corruption: What an adversary may do.
        trust: What every party has to believe of the others.
        dealer: Where correlated randomness comes from.
        caveat: What its figures are to be read with; empty for none.
        secure_dealer: False where one of the parties deals, and could learn everything.
        compares: Kernel of a comparison in the engine's profile.
        comparison_bits: Bits that all parties together send for one comparison in a ring of K bits; None where
            that varies with the number of comparisons in a call.
        caches_weights: Whether a weight can be opened once for a session.
        warms_up: Whether the first comparison and product of a session pay for a set-up.
    """

    name: str
    kind: str
    roles: tuple[str, ...]
    corruption: str
    trust: str
    dealer: str
    caveat: str = ""
    secure_dealer: bool = True
    compares: str = "msb_a2b"
    comparison_bits: Callable[[int], int] | None = None
    caches_weights: bool = False
    warms_up: bool = False

    @property
    def parties(self) -> int:
        """How many parties take part."""
        return len(self.roles)

    def to_json(self) -> dict[str, Any]:
        """The threat model, for results."""
        return {
            "protocol": self.name, "parties": list(self.roles), "corruption": self.corruption, "trust": self.trust,
            "dealer": self.dealer, "caveat": self.caveat,
        }  # fmt: skip


_SEMI_HONEST = "one party, semi-honest: it follows the protocol, and looks at all that it sees"

#: Every protocol by name.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "semi2k", "SEMI2K", ("client", "server"), _SEMI_HONEST,
            "that rank 0, which deals, forgets what it dealt: it could compute all secrets",
            "TrustedFirstParty: rank 0 deals, which is not secure; SPU's wheel offers no other",
            caveat="online, given a dealer", secure_dealer=False, caches_weights=True,
            comparison_bits=lambda ring: 2 * (2 * ring + 2 * (2 * ring + 32)),
        ),
        Protocol(
            "aby3", "ABY3", ("client", "server", "helper"), _SEMI_HONEST,
            "that no two parties collude: an honest majority of three", "none: replicated shares",
            comparison_bits=lambda ring: 3 * (4 * ring + 32),
        ),
        Protocol(
            "cheetah", "CHEETAH", ("client", "server"), _SEMI_HONEST, "nobody else",
            "none: homomorphic encryption and oblivious transfer between the two", warms_up=True,
        ),
    )
}  # fmt: skip

#: The protocol that is used where none is named.
DEFAULT_BY_PARTIES = {2: "cheetah", 3: "aby3"}


@dataclass(frozen=True)
class Settings:
    """What all parties have to agree on beside the program.

    Attributes:
        protocol: Name of the protocol.
        ring_bits: 32, 64 or 128.
        fraction_bits: Fraction bits of a number; 0 takes what the engine has for the ring: 8, 18 or 26.

    Raises:
        ProtocolError: They do not fit; with all of it.
    """

    protocol: str = "cheetah"
    ring_bits: int = 64
    fraction_bits: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.protocol not in PROTOCOLS:
            hint = did_you_mean(self.protocol, list(PROTOCOLS))
            problems.append(f"protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}.{hint}")
        if self.ring_bits not in _FRACTION:
            problems.append(f"a ring of {self.ring_bits} bits; there are {', '.join(map(str, _FRACTION))}")
        elif not 0 <= self.fraction_bits < self.ring_bits // 2:
            problems.append(f"{self.fraction_bits} fraction bits; a ring of {self.ring_bits} takes 1 to "
                            f"{self.ring_bits // 2 - 1}, for a product has twice as many")  # fmt: skip
        if problems:
            raise ProtocolError(
                "The protocol settings do not fit:", received="; ".join(problems), fix="Change the settings named."
            )
        if not self.fraction_bits:
            object.__setattr__(self, "fraction_bits", _FRACTION[self.ring_bits])

    @property
    def of(self) -> Protocol:
        """The protocol."""
        return PROTOCOLS[self.protocol]

    @property
    def comparison_bytes(self) -> int | None:
        """Bytes that all parties together send for one comparison; None where that varies."""
        bits = self.of.comparison_bits
        return None if bits is None else bits(self.ring_bits) // 8

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {
            "protocol": self.protocol, "ring_bits": self.ring_bits, "fraction_bits": self.fraction_bits,
            "parties": list(self.of.roles),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def threat_table() -> list[tuple[str, ...]]:
    """Rows of the threat-model table: protocol, parties, corruption, trust, dealer."""
    return [(p.name, ", ".join(p.roles), p.corruption, p.trust, p.dealer) for p in PROTOCOLS.values()]
