"""Numbers of a report as text: thousands separators, true minus signs, units that stay on the line."""

from __future__ import annotations

import math

from autorep_fx.report.data import ReportPolynomial

__all__ = ["change", "count", "formula", "metric", "number", "shape", "share", "span"]

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_NBSP = "\N{NO-BREAK SPACE}"


def count(value: int) -> str:
    """Write a count: ``491,520``."""
    return _minus(f"{value:,}")


def number(value: float) -> str:
    """Write a real number with three significant digits."""
    return _minus(f"{value:.3g}") if math.isfinite(value) else "not finite"


def share(part: int, whole: int) -> str:
    """Write ``part / whole`` in percent; neither all nor nothing is ever rounded to."""
    if whole <= 0:
        return "–"
    percent = 100.0 * part / whole
    if 0.0 < percent < 0.05:
        return f"<{_NBSP}0.1{_NBSP}%"
    if 99.95 <= percent < 100.0:
        return f">{_NBSP}99.9{_NBSP}%"
    return f"{percent:.1f}{_NBSP}%"


def shape(dims: tuple[int, ...]) -> str:
    """Write a shape: ``64×32×32``."""
    return "×".join(str(dim) for dim in dims) or "scalar"


def span(ends: tuple[float, float] | None) -> str:
    """Write a range: ``−3.1 … 4.2``, or a dash where there is none."""
    return "–" if ends is None else f"{number(ends[0])} … {number(ends[1])}"


def metric(value: float, *, percent: bool) -> str:
    """Write a metric, a fraction in percent."""
    if not math.isfinite(value):
        return "not finite"
    return f"{100.0 * value:.2f}{_NBSP}%" if percent else _minus(f"{value:,.4g}")


def change(value: float, reference: float, *, percent: bool) -> str:
    """Write ``value − reference`` with its sign, that of fractions in percentage points."""
    difference = value - reference
    if not math.isfinite(difference):
        return "not finite"
    text = f"{100.0 * difference:+.2f}" if percent else f"{difference:+,.3g}"
    if not any(digit in text for digit in "123456789"):
        text = text[1:]
    return _minus(text) + (f"{_NBSP}points" if percent else "")


def formula(polynomial: ReportPolynomial) -> str:
    """Write a polynomial: ``0.12 + 0.5·x − 0.08·x²``."""
    text = ""
    for power, coefficient in enumerate(polynomial.coefficients.tolist()):
        sign = "−" if coefficient < 0 else "+"
        lead = f" {sign} " if text else sign.replace("+", "")
        text += f"{lead}{number(abs(coefficient))}{_variable(power)}"
    return text or "0"


def _variable(power: int) -> str:
    if power == 0:
        return ""
    return "·x" if power == 1 else "·x" + str(power).translate(_SUPERSCRIPTS)


def _minus(text: str) -> str:
    return text.replace("-", "−")
