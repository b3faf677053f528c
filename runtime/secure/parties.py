"""``parties.yaml``: who takes part, where they are, and which certificate each has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autorep_fx.errors import ConfigError
from autorep_fx.runtime.secure.certificates import check_pair, fingerprint
from autorep_fx.runtime.secure.protocols import DEFAULT_BY_PARTIES, PROTOCOLS, Settings
from autorep_fx.runtime.secure.public import PROGRAM_FILE

__all__ = ["PartiesConfig", "PartyEntry", "load_parties"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartyEntry(_Strict):
    """One party; its rank is its place in the list.

    Attributes:
        role: ``client`` (has the input, opens the output), ``server`` (has the weights) or ``helper``.
        address: ``host:port`` that it listens on, and that the others reach it at.
        certificate: Its certificate, a PEM file; relative to the folder of the file.
        sha256: SHA-256 of the certificate in DER, in hexadecimal: it is pinned.
    """

    role: Literal["client", "server", "helper"]
    address: str = Field(pattern=r"^[^:\s]+:\d{1,5}$")
    certificate: Path
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PartiesConfig(_Strict):
    """The file that every party has a copy of.

    Attributes:
        session: A name that all parties share; parties of another session are not answered.
        protocol: ``cheetah``, ``aby3`` or ``semi2k``; unset, by the number of parties.
        ring_bits: 32, 64 or 128.
        fraction_bits: Fraction bits; 0 for the engine's own.
        timeout: Seconds that a party waits for a message of another.
        start_timeout: Seconds that a party waits for all others to start.
        insecure_dealer: Whether a dealer that is not secure is accepted; every party has to be started so, too.
        program: The public program, relative to the folder of the file.
        parties: The parties in the order of their ranks.
    """

    session: str = Field("autorep", min_length=1, max_length=100)
    protocol: str = ""
    ring_bits: int = 64
    fraction_bits: int = 0
    timeout: float = Field(60.0, gt=0, le=86400)
    start_timeout: float = Field(60.0, gt=0, le=86400)
    program: Path = Path(PROGRAM_FILE)
    parties: tuple[PartyEntry, ...] = Field(min_length=2, max_length=3)

    @model_validator(mode="before")
    @classmethod
    def _default_protocol(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("protocol"):
            value = {**value, "protocol": DEFAULT_BY_PARTIES.get(len(value.get("parties") or ()), "cheetah")}
        return value

    @model_validator(mode="after")
    def _roles_of_the_protocol(self) -> PartiesConfig:
        wanted = PROTOCOLS[self.protocol].roles if self.protocol in PROTOCOLS else None
        if wanted is not None and sorted(p.role for p in self.parties) != sorted(wanted):
            raise ValueError(f"{self.protocol} takes the roles {', '.join(wanted)}, one party each")
        if len({p.address for p in self.parties}) < len(self.parties):
            raise ValueError("two parties have one address")
        if len({p.sha256 for p in self.parties}) < len(self.parties):
            raise ValueError("two parties have one certificate")
        return self

    @property
    def settings(self) -> Settings:
        """The protocol settings."""
        return Settings(self.protocol, self.ring_bits, self.fraction_bits)

    def rank_of(self, role: str) -> int:
        """Rank of the party with a role."""
        return [str(party.role) for party in self.parties].index(role)


def load_parties(path: Path | str, rank: int, key: Path) -> PartiesConfig:
    """Read the file, and check certificates against their pinned fingerprints, and the own key.

    Returns:
        The settings, with absolute paths.

    Raises:
        ConfigError: Something of it does not hold; all problems of one kind at once.
        ProtocolError: The protocol settings do not fit.
    """
    path = Path(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = PartiesConfig.model_validate(value)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read.", received=str(error).splitlines()[0], fix="Pass the parties.yaml of the session."
        ) from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(
            f"{path} has {len(lines)} problem(s):\n" + "\n".join(lines), fix="See docs/secure.md for its keys."
        ) from error
    config.settings  # noqa: B018 - raises where they do not fit
    folder = path.resolve().parent
    parties = [p.model_copy(update={"certificate": folder / p.certificate}) for p in config.parties]
    config = config.model_copy(update={"parties": tuple(parties), "program": folder / config.program})
    if not 0 <= rank < len(parties):
        raise ConfigError("There is no such rank.", received=str(rank), fix=f"Pass 0 to {len(parties) - 1}.")
    wrong = [
        f"rank {r}: {p.certificate.name} has {found}, pinned is {p.sha256}"
        for r, p in enumerate(parties)
        if (found := fingerprint(p.certificate)) != p.sha256
    ]
    if wrong:
        raise ConfigError(
            "Certificates are not those that are pinned:\n  " + "\n  ".join(wrong),
            fix="Get the party's certificate anew over a channel that you trust, and compare fingerprints.",
        )
    check_pair(parties[rank].certificate, key)
    return config
