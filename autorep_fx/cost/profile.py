"""Cost profiles: what the operations of a protocol cost in an engine, with the source of every constant."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from autorep_fx.errors import ConfigError, did_you_mean

__all__ = ["DEFAULT_PROFILE", "OperationCost", "Profile", "ProtocolProfile", "load_profile"]

#: The profile that comes with the package.
DEFAULT_PROFILE = "spu-0.9.5"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OperationCost(_Entry):
    """Cost of one operation of a protocol.

    Attributes:
        bytes: Over all parties, per element of the result.
        left: Over all parties, per element of the first factor of a product of matrices.
        right: Per element of the second factor.
        result: Per element of the result.
        messages: One after another, of the party that sends most, however many elements; None where nobody counted.
        status: ``measured`` in the engine; ``quoted`` from the named source; ``unverified``: recalled, to be checked.
        source: Where the numbers are from.
    """

    bytes: float = 0.0
    left: float = 0.0
    right: float = 0.0
    result: float = 0.0
    messages: int | None
    status: Literal["measured", "quoted", "unverified"]
    source: str


class ProtocolProfile(_Entry):
    """Costs under one protocol; operations that are not listed are not known.

    Attributes:
        parties: Parties that compute.
        note: What a reader of the figures must know.
        setup_bytes: Over all parties, once for a session.
        setup_messages: Once for a session.
        operations: Operation → cost.
    """

    parties: int
    note: str
    setup_bytes: int
    setup_messages: int
    operations: dict[str, OperationCost]

    @property
    def verified(self) -> bool:
        """Whether no constant is unverified: only then may it choose a lowering, or satisfy a budget."""
        return all(cost.status != "unverified" for cost in self.operations.values())


class FixedPoint(_Entry):
    """Numbers of the engine: bits of the ring, and of the fraction."""

    ring_bits: int
    fraction_bits: int


class Profile(_Entry):
    """Costs of an engine under its protocols."""

    format: Literal["autorep-fx cost profile"]
    format_version: Literal[1]
    name: str
    fixed_point: FixedPoint
    unit: str
    protocols: dict[str, ProtocolProfile]

    def protocol(self, name: str) -> ProtocolProfile:
        """One protocol.

        Raises:
            ConfigError: It is not in the profile.
        """
        if name not in self.protocols:
            raise ConfigError(
                f"The cost profile {self.name} has no protocol {name!r}.{did_you_mean(name, list(self.protocols))}",
                fix=f"Use one of {', '.join(self.protocols)}.",
            )
        return self.protocols[name]


def load_profile(path: Path | str | None = None) -> Profile:
    """Read a profile: a file, or the one that comes with the package.

    Raises:
        ConfigError: The file is missing or is no profile; everything that is wrong is listed.
    """
    if path is None:
        text = (files("autorep_fx.cost") / "profiles" / f"{DEFAULT_PROFILE}.json").read_text(encoding="utf-8")
        return Profile.model_validate_json(text)
    try:
        return Profile.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a cost profile.", received=str(error)) from error
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{path} is no cost profile.", received="\n  ".join(["", *wrong])) from error
