"""Amounts that secure execution is paid in, as text: ``40MB``, ``170 messages``, ``2s``."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["AMOUNT_KINDS", "read_amount", "write_amount"]

#: What an amount counts.
AMOUNT_KINDS = ("bytes", "messages", "seconds")
# Unit, in small letters → what it counts, and how many of them it is.
_UNITS = {
    "b": ("bytes", "1"), "kb": ("bytes", "1e3"), "mb": ("bytes", "1e6"), "gb": ("bytes", "1e9"),
    "kib": ("bytes", "1024"), "mib": ("bytes", "1048576"), "gib": ("bytes", "1073741824"),
    "bytes": ("bytes", "1"), "messages": ("messages", "1"), "message": ("messages", "1"),
    "s": ("seconds", "1"), "ms": ("seconds", "1e-3"), "seconds": ("seconds", "1"),
}  # fmt: skip
_LARGEST = 2**63 - 1  # nobody pays more; larger numbers are slips
_TEXT = re.compile(r"\s*(?P<value>(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>[a-z]+)\s*", re.I)


def read_amount(text: str) -> tuple[str, int | float] | None:
    """What is counted, and the number in bytes, messages or seconds.

    None for what is no amount, for a part of a byte or of a message, and for more than anything costs.
    """
    match = _TEXT.fullmatch(text)
    if match is None or match["unit"].lower() not in _UNITS:
        return None
    kind, factor = _UNITS[match["unit"].lower()]
    number = Decimal(match["value"].replace("_", "").replace(",", ""))
    if number > _LARGEST:
        return None
    number *= Decimal(factor)
    if kind == "seconds":
        return kind, float(number)
    return (kind, int(number)) if number == number.to_integral_value() else None


def write_amount(kind: str, value: float) -> str:
    """The shortest text that :func:`read_amount` reads as the same number."""
    if kind == "seconds":
        return f"{float(value):,} s"
    if kind == "messages":
        return f"{int(value):,} messages"
    for unit, digits in (("GB", 9), ("MB", 6), ("kB", 3)):
        if value >= 10**digits and value % 10 ** (digits - 3) == 0:
            return f"{Decimal(int(value)).scaleb(-digits).normalize():f} {unit}"
    return f"{value:,} bytes"
