"""The command ``diff``: two results, plans or ONNX models against each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from autorep_fx.console import table_console

if TYPE_CHECKING:
    from autorep_fx.diff import ModelDiff, PlanDiff, SiteDiff

__all__ = ["diff"]


def diff(
    before: Annotated[Path, typer.Argument(help="A folder of a result, a plan.json, or an ONNX file.")],
    after: Annotated[Path, typer.Argument(help="The other one, of the same kind.")],
    all_sites: Annotated[bool, typer.Option("--all", help="List what did not change, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what changed between two plans or two compiled models, site by site."""
    from autorep_fx.diff import diff_models, diff_plans
    from autorep_fx.plan import Plan

    plans, models = _plans(before, after), _models(before, after)
    if not plans and not models:
        raise typer.BadParameter(
            f"{before} and {after} are not two of a kind: pass two folders with a plan.json, two plan.json, or two "
            "ONNX files.", param_hint="BEFORE AFTER",
        )  # fmt: skip
    plan_diff = diff_plans(Plan.load(plans[0]), Plan.load(plans[1])) if plans else None
    model_diff = diff_models(*models) if models else None
    if as_json:
        found: dict[str, Any] = {
            "plans": None if plan_diff is None else plan_diff.to_json(),
            "models": None if model_diff is None else model_diff.to_json(),
        }
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    console = table_console()
    if plan_diff is not None:
        _print_plans(console, plan_diff, all_sites)
    if model_diff is not None:
        _print_models(console, model_diff, all_sites)


def _plans(before: Path, after: Path) -> tuple[Path, Path] | None:
    """The folders of two plans, if both arguments are, or hold, one."""
    folders = [path.parent if path.name == "plan.json" else path for path in (before, after)]
    return (folders[0], folders[1]) if all((folder / "plan.json").is_file() for folder in folders) else None


def _models(before: Path, after: Path) -> tuple[Path, Path] | None:
    """Two ONNX files, those of two folders included; not those beside two plans that were named alone."""
    files = [path / "model.onnx" if path.is_dir() else path for path in (before, after)]
    return (files[0], files[1]) if all(file.suffix == ".onnx" and file.is_file() for file in files) else None


def _print_plans(console: Console, found: PlanDiff, all_sites: bool) -> None:
    a, b = found.comparisons
    console.print(
        f"plans: budget {found.budgets[0]} → {found.budgets[1]}; {a:,} → {b:,} comparisons ({b - a:+,}); "
        f"{len(found.changed)} of {len(found.sites)} sites changed", highlight=False, soft_wrap=True,
    )  # fmt: skip
    if not found.same_graph:
        console.print("The plans were made for different graphs; sites are matched by name.", soft_wrap=True)
    rows = found.sites if all_sites else found.changed
    if not rows:
        return
    table = Table()
    table.add_column("site", overflow="fold", min_width=min(40, max(len(site.name) for site in rows)))
    for name in ("kept", "newly replaced", "newly kept", "gates", "degree", "|Δc0|, |Δc1|, …"):
        table.add_column(name, justify="right")
    for site in rows:
        table.add_row(*_plan_cells(site))
    console.print(table)


def _plan_cells(site: SiteDiff) -> tuple[str, ...]:
    fixed = site.kept == (None, None)
    return (
        site.name, _pair(site.comparisons if fixed else site.kept), _number(site.newly_replaced),
        _number(site.newly_kept), _pair(site.granularity), _pair(site.degree),
        ", ".join(f"{value:.2g}" for value in site.coefficients),
    )  # fmt: skip


def _print_models(console: Console, found: ModelDiff, all_sites: bool) -> None:
    console.print(
        f"models: {_pair(found.comparisons)} comparisons, {_pair(found.multiplications)} products between values, "
        f"{_pair(found.bytes)} bytes, opset {_pair(found.opset)}", highlight=False, soft_wrap=True,
    )  # fmt: skip
    for name, pair in (("inputs", found.inputs), ("outputs", found.outputs)):
        if pair[0] != pair[1]:
            console.print(f"{name}: {'; '.join(pair[0])} → {'; '.join(pair[1])}", highlight=False, soft_wrap=True)
    _print_pairs(console, ("operator", "nodes"), found.operators, all_sites)
    _print_pairs(console, ("site" if found.by_site else "node", "comparisons"), found.sites, all_sites)


def _print_pairs(
    console: Console, titles: tuple[str, str], rows: Mapping[str, tuple[Any, Any]], all_rows: bool
) -> None:
    shown = {name: pair for name, pair in rows.items() if all_rows or pair[0] != pair[1]}
    if not shown:
        return
    table = Table(*titles)
    table.columns[0].overflow = "fold"
    table.columns[1].justify = "right"
    for name, (a, b) in shown.items():
        table.add_row(name, _pair((a, b)))
    console.print(table)


def _pair(pair: tuple[Any, Any]) -> str:
    """``3 → 5``, or the value once where it is the same."""
    a, b = (_number(value) for value in pair)
    return a if a == b else f"{a or 'none'} → {b or 'none'}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
