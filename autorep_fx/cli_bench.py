"""The command ``bench``: two ONNX files against each other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from autorep_fx.runtime.bench import BatchBench, Bench, Spread

__all__ = ["bench"]

_SHOWN = 8  # operators, those with the largest difference


def bench(
    original: Annotated[Path, typer.Argument(help="The model to compare with: .onnx, or a folder of a result.")],
    compiled: Annotated[Path, typer.Argument(help="The other one.")],
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads inside an operator; 0 is onnxruntime's choice.")] = 0,
    runs: Annotated[int, typer.Option(help="Measured runs of each model at each batch size.")] = 50,
    warm_up: Annotated[int, typer.Option(help="Runs before them.")] = 5,
    memory: Annotated[bool, typer.Option(help="Peak memory, each model in a process of its own.")] = True,
    profile: Annotated[bool, typer.Option(help="Time by operator, in further runs.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure two models that take the same inputs, in alternating runs."""
    from autorep_fx.runtime.bench import bench as run

    try:
        batches = [int(text) for text in batch.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{batch!r} is no list of batch sizes, such as 1,32.", param_hint="--batch") from error
    files = [path / "model.onnx" if path.is_dir() else path for path in (original, compiled)]
    found = run(
        files[0], files[1], batches=batches, device=device, threads=threads, runs=runs,  # type: ignore[arg-type]
        warm_up=warm_up, memory=memory, profile=profile,
    )  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n")
        return
    console = Console()
    console.print(_conditions(found), highlight=False, soft_wrap=True)
    console.print(_times(found))
    for row in found.batches:
        if row.operators:
            console.print(_operators(row))


def _conditions(found: Bench) -> str:
    machine = found.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"; {machine['gpu']}" if machine.get("gpu") else ""
    load = "" if machine["load"] is None else f", load {machine['load']:.1f} before"
    threads = "onnxruntime's choice of threads" if found.threads == 0 else f"{found.threads} threads"
    return (
        f"A: {found.models[0]}\nB: {found.models[1]}\n"
        f"on {found.device}, {threads}; {machine['processor']}, {machine['cores']} cores{load}{gpu}\n{versions}\n"
        "The two run in turn; B/A is of each turn."
    )


def _times(found: Bench) -> Table:
    """Three rows per batch size: either model, and one over the other."""
    table = Table()
    table.add_column("batch", justify="right")
    table.add_column("")
    memory = any(row.memory is not None for row in found.batches)
    for name in ("n", "median", "quartiles", *(("peak MB, loading", "peak MB, running") if memory else ())):
        table.add_column(name, justify="right")
    for row in found.batches:
        for index, name in enumerate(("A", "B")):
            peaks = (row.memory[index].loading, row.memory[index].running) if row.memory else ()
            table.add_row(
                str(row.batch) if index == 0 else "", f"{name}, ms", *_spread(row.seconds[index], 1e3),
                *(_megabytes(peak) for peak in peaks),
            )  # fmt: skip
        table.add_row("", "B/A", *_spread(row.ratio, 1), end_section=True)
    return table


def _spread(value: Spread, scale: float) -> tuple[str, str, str]:
    median, lower, upper = (f"{v * scale:.3f}" for v in (value.median, value.lower, value.upper))
    return str(value.n), median, f"{lower}–{upper}"


def _megabytes(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e6:,.0f}"


def _operators(row: BatchBench) -> Table:
    table = Table(title=f"Operators at batch {row.batch}, by difference", title_justify="left")
    table.add_column("operator")
    for name in ("A, nodes", "A, ms", "B, nodes", "B, ms", "B − A, ms"):
        table.add_column(name, justify="right")
    shown, rest = row.operators[:_SHOWN], row.operators[_SHOWN:]
    for a, b in shown:
        table.add_row(
            a.operator, str(a.nodes), f"{a.seconds * 1e3:.3f}", str(b.nodes), f"{b.seconds * 1e3:.3f}",
            f"{(b.seconds - a.seconds) * 1e3:+.3f}",
        )  # fmt: skip
    if rest:
        totals = [sum(pair[i].seconds for pair in rest) * 1e3 for i in (0, 1)]
        nodes = [sum(pair[i].nodes for pair in rest) for i in (0, 1)]
        table.add_row(
            f"{len(rest)} others", str(nodes[0]), f"{totals[0]:.3f}", str(nodes[1]), f"{totals[1]:.3f}",
            f"{totals[1] - totals[0]:+.3f}",
        )  # fmt: skip
    return table
