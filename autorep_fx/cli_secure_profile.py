"""The profile of ``secure run``: a table, and a JSON or HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from autorep_fx.errors import ConfigError

if TYPE_CHECKING:
    from autorep_fx.runtime.secure.node_profile import Row
    from autorep_fx.runtime.secure.results import SecureRun

__all__ = ["ProfileOption", "check_profile_file", "print_profile", "write_profile"]

ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", help="Measure each operation by itself, and write it here: .json or .html; in simulate."),
]
_MOST = 12


def check_profile_file(path: Path | None) -> None:
    """Refuse a kind of file that there is no writer for, before anything runs.

    Raises:
        ConfigError: It is neither JSON nor HTML.
    """
    if path is not None and path.suffix.lower() not in (".json", ".html"):
        raise ConfigError("A profile is JSON or HTML.", received=str(path), fix="End its name in .json or .html.")


def write_profile(result: SecureRun, path: Path, *, title: str) -> None:
    """Write the profile of a run in the form that the file's name asks for.

    Raises:
        OutputError: The file cannot be written.
    """
    from autorep_fx.files import write_text
    from autorep_fx.report.secure_profile import secure_profile_page

    assert result.profile is not None
    run, profile = result.to_json(), result.profile.to_json()
    if path.suffix.lower() == ".html":
        write_text(path, secure_profile_page(run, profile, title=title))
    else:
        write_text(path, json.dumps({"run": run, **profile}, indent=2) + "\n")


def print_profile(result: SecureRun) -> None:
    """The calls that sent most, and the sum of all."""
    assert result.profile is not None
    rows = sorted(result.profile.calls, key=lambda row: -row.measured_bytes)
    sending = [row for row in rows if row.measured_bytes]
    table = Table(Column("call", overflow="fold"), title="Bytes by call, the most first", title_justify="left")
    for name in ("comparisons", "predicted bytes", "measured bytes", "messages", "seconds"):
        table.add_column(name, justify="right")
    for row in sending[:_MOST]:
        _add(table, row)
    if len(sending) > _MOST:
        table.add_row(f"and {len(sending) - _MOST} more")
    table.add_section()
    _add(table, result.profile.total)
    Console().print(table)


def _add(table: Table, row: Row) -> None:
    predicted = "–" if row.predicted_bytes is None else f"{row.predicted_bytes:,}"
    table.add_row(
        row.name, f"{row.comparisons:,}", predicted, f"{row.measured_bytes:,}", f"{row.messages:,}",
        f"{row.seconds:.3f}",
    )  # fmt: skip
