"""The budget that a user states, and its one grammar for Python, YAML and the command line.

A budget is inert data. What it allows in a given model is resolved by :mod:`autorep_fx.cost.resolve`.
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

from autorep_fx.errors import BudgetError

__all__ = ["Budget"]

# No model spends more; larger numbers in text are slips, and would be slow to write out.
_LARGEST = 2**63 - 1
_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000}
_NUMBER = re.compile(r"\s*(?P<value>[+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<suffix>[km%]?)\s*", re.I)
_SPELLINGS = (
    "Write an integer for comparisons (12900, '12.9K'; 0 for none), or a fraction of the gateable comparisons "
    "as '5%' or a float in (0, 1] (0.05)."
)


@dataclass(frozen=True)
class Budget:
    """What a compiled model may spend.

    Attributes:
        kind: ``comparisons`` (a number, which refers to the model's total per sample) or ``fraction`` (which
            refers to the gateable comparisons).
        value: Comparisons per sample (int), or the fraction in [0, 1] (float).
    """

    kind: Literal["comparisons", "fraction"]
    value: int | float

    def __post_init__(self) -> None:
        """Check the value.

        Raises:
            BudgetError: A bool, a negative number, a fraction above 1, or a number that is not whole.
        """
        value: object = self.value
        if isinstance(value, bool) or not isinstance(value, (Integral, float)):
            raise _refuse(value)
        if self.kind == "comparisons":
            if isinstance(value, float) or not 0 <= int(value) <= _LARGEST:
                raise _refuse(value)
            object.__setattr__(self, "value", int(value))  # also of a NumPy integer
        elif self.kind == "fraction":
            if not 0 <= float(value) <= 1:
                raise _refuse(value)
            object.__setattr__(self, "value", float(value))
        else:
            raise _refuse(self.kind)

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
                ``"12.9K"``, ``"5%"``, ``"12900"``, ``"0.05"``; or ``{"comparisons": n}`` / ``{"fraction": f}``.

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
    def _from_text(cls, text: str) -> Budget:
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
        """What it allows of ``comparisons``: the number itself, or that fraction of them, rounded down."""
        if self.kind == "comparisons":
            return int(self.value)
        # Fraction of the decimal that the user wrote: 0.29 of 100 is 29, not the 28 of binary floating point.
        return int(Fraction(repr(self.value)) * comparisons)

    def to_json(self) -> dict[str, int | float]:
        """The form that saved files carry: ``{"comparisons": n}`` or ``{"fraction": f}``."""
        return {self.kind: self.value}

    @property
    def short(self) -> str:
        """``5%`` or ``12,900``."""
        return f"{self.value:,}" if self.kind == "comparisons" else f"{100 * self.value:.6g}%"

    def __str__(self) -> str:
        if self.kind == "comparisons":
            return f"{self.value:,} comparisons"
        return f"{100 * self.value:.6g}% of the gateable comparisons"


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
