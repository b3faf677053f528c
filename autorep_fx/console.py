"""The console that commands print tables to."""

from __future__ import annotations

from rich.console import Console

__all__ = ["table_console"]

# Columns: a pipe or a log has 80 by default, in which the tables of `cost` and `diff` lose digits.
_LEAST = 150


def table_console() -> Console:
    """A console of at least 150 columns: lines that a terminal wraps can be read, numbers that are cut off mislead."""
    console = Console()
    return Console(width=max(console.width, _LEAST))
