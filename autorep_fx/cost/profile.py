"""Cost profiles: what the operations of a protocol cost in an engine, with the source of every constant."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from autorep_fx.cost.packing import Packing
from autorep_fx.errors import ConfigError, did_you_mean

__all__ = [
    "DEFAULT_PROFILE", "Compute", "OperationCost", "Profile", "ProtocolProfile", "Reserve", "Split", "load_profile",
]  # fmt: skip

#: The profile that comes with the package.
DEFAULT_PROFILE = "spu-0.9.5"

Status = Literal["measured", "quoted", "unverified"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Compute(_Entry):
    """Seconds that an operation takes when nothing waits for a network.

    Attributes:
        call: Of one call.
        element: Per element of the result.
        multiply: Per multiplication of a product of matrices.
        batch: Per batch of a reserve that it makes.
        index: Per public index of a gather.
        ciphertext: Per encrypted block of a result.
        rotation: Per column of a block by which ciphertexts are packed.
        status: How they are known.
        source: Where they are from, and on what machine.
    """

    call: float = 0.0
    element: float = 0.0
    multiply: float = 0.0
    batch: float = 0.0
    index: float = 0.0
    ciphertext: float = 0.0
    rotation: float = 0.0
    status: Status
    source: str


class Reserve(_Entry):
    """What an operation draws from a reserve that the parties make in batches and keep for later queries.

    Where calls are split, each piece draws from a reserve of its own, which is as large.

    Attributes:
        elements: Elements of a result that a batch is enough for.
        bytes: Of a batch, over all parties.
        messages: Of a batch, of all parties together.
        serial: How many of these wait for one another, as far as that is known.
        left: Elements that are left of the set-up.
        direct_from: From so many elements in a call on nothing is drawn; None for never.
        direct_elements: Elements that one direct piece is enough for; such a call is made of two halves.
        direct_bytes: Of a piece, over all parties, in place of what an element costs otherwise.
        direct_messages: Of a piece, of all parties together.
    """

    elements: int
    bytes: float
    messages: int
    serial: int = 0
    left: int = 0
    direct_from: int | None = None
    direct_elements: int = 1
    direct_bytes: float = 0.0
    direct_messages: int = 0


class Split(_Entry):
    """A call that the engine cuts into pieces, each with messages of its own, which travel at the same time.

    Attributes:
        elements: In a piece, at least.
        most: Pieces: as many as the engine has threads.
        chunk: Elements after which a piece needs a message more; None for never.
    """

    elements: int
    most: int
    chunk: int | None = None


class OperationCost(_Entry):
    """Cost of one operation of a protocol.

    Attributes:
        bytes: Over all parties, per element of the result.
        left: Over all parties, per element of the first factor of a product of matrices.
        right: Per element of the second factor.
        result: Per element of the result.
        call: Over all parties, per call.
        messages: One after another, of the party that sends most, however many elements; None where nobody counted.
        messages_total: Of all parties together, of one piece if calls are split; None likewise.
        split: How calls are cut; None if they are not.
        reserve: What it draws from; None for nothing.
        packing: For homomorphic products of matrices, in place of bytes and messages.
        seconds: Computation; None where nobody measured.
        status: ``measured`` in the engine; ``quoted`` from the named source; ``unverified``: recalled, to be checked.
        source: Where the numbers are from.
    """

    bytes: float = 0.0
    left: float = 0.0
    right: float = 0.0
    result: float = 0.0
    call: float = 0.0
    messages: int | None
    messages_total: int | None = None
    split: Split | None = None
    reserve: Reserve | None = None
    packing: Packing | None = None
    seconds: Compute | None = None
    status: Status
    source: str


class ProtocolProfile(_Entry):
    """Costs under one protocol; operations that are not listed are not known.

    Attributes:
        parties: Parties that compute.
        note: What a reader of the figures must know.
        setup_bytes: Over all parties, once for a session.
        setup_messages: Once for a session.
        local: Computation of operations that send nothing; None where nobody measured.
        operations: Operation → cost.
    """

    parties: int
    note: str
    setup_bytes: int
    setup_messages: int
    local: Compute | None = None
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
