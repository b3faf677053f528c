"""The budget that a user states, and its one grammar for Python, YAML and the command line.

A budget is inert data. What it allows in a given model is resolved by :mod:`autorep_fx.cost.resolve`; what a budget in
bytes, messages or seconds allows is measured with the lowered graph, by :mod:`autorep_fx.cost_meter`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from typing import Any, Literal

from autorep_fx.amounts import AMOUNT_KINDS, read_amount, write_amount
from autorep_fx.errors import BudgetError

__all__ = ["Budget"]

# No model spends more; larger numbers in text are slips, and would be slow to write out.
_LARGEST = 2**63 - 1
_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000}
_NUMBER = re.compile(r"\s*(?P<value>[+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<suffix>[km%]?)\s*", re.I)
_SPELLINGS = (
    "Write an integer for comparisons (12900, '12.9K'; 0 for none), or a fraction of the gateable comparisons "
    "as '5%' or a float in (0, 1] (0.05); or what a query costs under a protocol: '40MB@semi2k', '170messages@aby3', "
    "'2s@cheetah/wan'."
)
_ALLOW_UNVERIFIED = "allow_unverified"


@dataclass(frozen=True)
class Budget:
    """What a compiled model may spend.

    Attributes:
        kind: ``comparisons`` (a number, which refers to the model's total per sample); ``fraction`` (which refers to
            the gateable comparisons); or ``bytes``, ``messages``, ``seconds`` of one query of one sample in a session,
            after its set-up: bytes of all parties together, messages one after another, seconds of computation and
            network, as :mod:`autorep_fx.cost` predicts them.
        value: Comparisons per sample, bytes or messages (int), the fraction in [0, 1], or seconds (float).
        protocol: Protocol of a cost profile, for bytes, messages and seconds; else None.
        network: ``lan``, ``wan`` or ``100Mbps,40ms``, for seconds; else None.
        allow_unverified: Take constants of the protocol that nobody has checked.
    """

    kind: Literal["comparisons", "fraction", "bytes", "messages", "seconds"]
    value: int | float
    protocol: str | None = None
    network: str | None = None
    allow_unverified: bool = False

    def __post_init__(self) -> None:
        """Check the value.

        Raises:
            BudgetError: A bool, a negative number, a fraction above 1, a number that is not whole, or a cost without
                the protocol (and network) that it is meant under.
        """
        value: object = self.value
        if isinstance(value, bool) or not isinstance(value, (Integral, float)):
            raise _refuse(value)
        whole = self.kind in ("comparisons", "bytes", "messages")
        if self.kind not in ("comparisons", "fraction", *AMOUNT_KINDS):
            raise _refuse(self.kind)
        if whole and (isinstance(value, float) or not 0 <= int(value) <= _LARGEST):
            raise _refuse(value)
        if not whole and not 0 <= float(value) <= (1 if self.kind == "fraction" else float(_LARGEST)):
            raise _refuse(value)
        object.__setattr__(self, "value", int(value) if whole else float(value))  # also of a NumPy number
        self._check_terms()

    def _check_terms(self) -> None:
        if not all(term is None or isinstance(term, str) for term in (self.protocol, self.network)):
            raise _refuse({"protocol": self.protocol, "network": self.network})
        if self.is_cost == (self.protocol is None):
            what = "costs need a protocol" if self.is_cost else "comparisons are the same under every protocol"
            raise BudgetError("That is not a budget.", received=f"{self.kind} under {self.protocol}: {what}",
                              fix=_SPELLINGS)  # fmt: skip
        if (self.kind == "seconds") == (self.network is None):
            raise BudgetError(
                "Seconds need a network, and nothing else has one.", received=f"{self.kind}, network {self.network}",
                fix="Write seconds as '2s@semi2k/wan' or '2s@semi2k/100Mbps,40ms', bytes as '40MB@semi2k'.",
            )  # fmt: skip

    @property
    def is_cost(self) -> bool:
        """Whether it is in bytes, messages or seconds."""
        return self.kind in AMOUNT_KINDS

    @classmethod
    def bytes(cls, amount: int | str, *, protocol: str, allow_unverified: bool = False) -> Budget:
        """At most so many bytes (``40_000_000``, ``"40MB"``) of all parties for one query, after the set-up."""
        return cls("bytes", _amount("bytes", amount), protocol, None, allow_unverified)

    @classmethod
    def messages(cls, number: int, *, protocol: str, allow_unverified: bool = False) -> Budget:
        """At most so many messages, one after another, for one query, after the set-up."""
        return cls("messages", _amount("messages", number), protocol, None, allow_unverified)

    @classmethod
    def seconds(cls, seconds: float | str, *, protocol: str, network: str, allow_unverified: bool = False) -> Budget:
        """At most so much time for one query over ``network``, after the set-up."""
        return cls("seconds", _amount("seconds", seconds), protocol, network, allow_unverified)

    @classmethod
    def comparisons(cls, number: int) -> Budget:
        """At most ``number`` nominal comparisons per sample in the whole model."""
        return cls("comparisons", number)

    @classmethod
    def fraction(cls, fraction: float) -> Budget:
        """At most ``fraction`` (0 to 1) of the gateable comparisons, on top of the fixed ones."""
        return cls("fraction", fraction)

    @classmethod
    def parse(cls, value: object) -> Budget:
        """Read a budget in any of its spellings.

        Args:
            value: A :class:`Budget`; an int (comparisons); a float in [0, 1] (fraction); text such as
                ``"12.9K"``, ``"5%"``, ``"12900"``, ``"0.05"``, ``"40MB@semi2k"``, ``"2s@semi2k/wan"``; or
                ``{"comparisons": n}``, ``{"fraction": f}``, ``{"bytes": n, "protocol": "semi2k"}`` and the like.

        Raises:
            BudgetError: Anything else, with the spellings that would do.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, Mapping):
            return cls._from_mapping(value)
        if isinstance(value, str):
            return cls._from_text(value)
        if isinstance(value, bool):
            raise _refuse(value)
        if isinstance(value, Integral):
            return cls.comparisons(int(value))
        if isinstance(value, float):
            return cls._from_float(value, value)
        raise _refuse(value)

    @classmethod
    def _from_float(cls, value: float, received: object) -> Budget:
        if not 0 <= value <= 1:
            raise _refuse(received)
        return cls.fraction(value)

    @classmethod
    def _from_mapping(cls, value: Mapping[Any, Any]) -> Budget:
        costs = [kind for kind in AMOUNT_KINDS if kind in value]
        if len(costs) == 1:
            return cls._from_cost(costs[0], dict(value))
        if len(value) != 1 or next(iter(value)) not in ("comparisons", "fraction"):
            raise _refuse(dict(value))
        [(kind, number)] = value.items()
        if isinstance(number, str):
            parsed = cls._from_text(number)
            if parsed.kind != kind and not (kind == "fraction" and parsed.value in (0, 1)):
                raise _refuse(dict(value))
            number = parsed.value
        return cls(kind, number)

    @classmethod
    def _from_cost(cls, kind: Any, terms: dict[Any, Any]) -> Budget:
        known = {kind, "protocol", "network", _ALLOW_UNVERIFIED}
        allowed = terms.get(_ALLOW_UNVERIFIED, False)
        if set(terms) - known or not isinstance(allowed, bool):
            raise _refuse(terms)
        return cls(kind, _amount(kind, terms[kind]), terms.get("protocol"), terms.get("network"), allowed)

    @classmethod
    def _from_text(cls, text: str) -> Budget:
        amount, at, terms = text.partition("@")
        if at:
            read = read_amount(amount)
            if read is None:
                raise _refuse(text)
            protocol, _, network = (part.strip() for part in terms.partition("/"))
            return cls(read[0], read[1], protocol or None, network or None)  # type: ignore[arg-type]
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise _refuse(text)
        digits = match["value"].replace("_", "").replace(",", "")
        number, suffix = Decimal(digits), match["suffix"].lower()
        if number > _LARGEST:
            raise _refuse(text)
        if suffix == "%":
            return cls._from_float(float(number / 100), text)
        scaled = number * _SUFFIXES[suffix]
        if suffix == "" and not digits.lstrip("+-").isdigit():
            return cls._from_float(float(scaled), text)
        if scaled != scaled.to_integral_value():
            raise _refuse(text)
        return cls.comparisons(int(scaled))

    def of(self, comparisons: int) -> int:
        """What it allows of ``comparisons``: the number itself, or that fraction of them, rounded down.

        For comparisons and fractions; what a cost allows depends on the lowered graph.
        """
        if self.kind == "comparisons":
            return int(self.value)
        # Fraction of the decimal that the user wrote: 0.29 of 100 is 29, not the 28 of binary floating point.
        return int(Fraction(repr(self.value)) * comparisons)

    def to_json(self) -> dict[str, Any]:
        """The form that saved files carry: ``{"comparisons": n}``, ``{"bytes": n, "protocol": "semi2k"}`` and so on."""
        stated = {"protocol": self.protocol, "network": self.network, _ALLOW_UNVERIFIED: self.allow_unverified or None}
        return {self.kind: self.value} | {name: term for name, term in stated.items() if term is not None}

    @property
    def short(self) -> str:
        """``5%``, ``12,900`` or ``40MB@semi2k``."""
        if self.is_cost:
            network = "" if self.network is None else f"/{self.network}"
            return f"{write_amount(self.kind, self.value).replace(' ', '')}@{self.protocol}{network}"
        return f"{self.value:,}" if self.kind == "comparisons" else f"{100 * self.value:.6g}%"

    def __str__(self) -> str:
        if self.is_cost:
            network = "" if self.network is None else f" on {self.network}"
            return f"{write_amount(self.kind, self.value)} a query under {self.protocol}{network}"
        if self.kind == "comparisons":
            return f"{self.value:,} comparisons"
        return f"{100 * self.value:.6g}% of the gateable comparisons"


def _amount(kind: str, value: Any) -> Any:
    """A number as it is; text with its unit, or as a bare number."""
    if not isinstance(value, str):
        return value
    read = read_amount(value) or read_amount(value + kind)
    if read is None or read[0] != kind:
        raise BudgetError(f"That is no number of {kind}.", received=repr(value), fix=_SPELLINGS)
    return read[1]


def _refuse(value: object) -> BudgetError:
    hint = ""
    number = _plain_number(value)
    if number is not None and number > 1:
        hint = f" If you meant comparisons write {int(number)}"
        hint += f"; if you meant a percentage write '{number:g}%'." if number <= 100 else "."
    return BudgetError("That is not a budget.", received=repr(value), fix=_SPELLINGS + hint)


def _plain_number(value: object) -> float | None:
    """The number in a refused value without a suffix, to suggest what may have been meant."""
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        value = float(match["value"].replace(",", "").replace("_", "")) if match and not match["suffix"] else None
    return value if isinstance(value, float) and math.isfinite(value) else None
