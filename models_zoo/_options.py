"""Check of option values, without torch so that `input_shape` can use it too."""

from __future__ import annotations

__all__ = ["check_positive"]


def check_positive(**options: object) -> None:
    """Raise ValueError, naming the option, unless every value is a positive integer."""
    for option, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{option} must be a positive integer, got {value!r}.")
