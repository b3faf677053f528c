"""The command ``sweep``: a pipeline file at falling budgets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["sweep"]


def sweep(
    config: Annotated[Path, typer.Option("--config", "-c", help="Pipeline file (YAML).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)],
    budgets: Annotated[
        str, typer.Option(help="Budgets, separated by commas, such as 10%,2.6%,1%,0%.", show_default=False)
    ] = "",
    max_drop: Annotated[float, typer.Option(help="What the metric may fall by, for the winner.")] = 0.01,
    method: Annotated[str | None, typer.Option(help="Training method in place of the file's: autorep, snl, …")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, for those read from one.")] = None,
    resume: Annotated[bool, typer.Option(help="Take up what is finished in --out.")] = False,
) -> None:
    """Compile at falling budgets, each from the one before; table, plot and the cheapest good model."""
    from autorep_fx.config_io import load_pipeline
    from autorep_fx.pareto import LADDER
    from autorep_fx.pipeline import run_sweep
    from autorep_fx.progress import TrainingProgress

    console = Console()
    settings = load_pipeline(config, method=method).with_overrides(data_folder=data)
    parts = re.split(r",(?!\s*[\d.]+\s*ms)", budgets)  # a network may be written 100Mbps,40ms
    wanted = [text.strip() for text in parts if text.strip()] or list(LADDER)
    with TrainingProgress() as progress:
        found = run_sweep(
            settings, out, budgets=wanted, max_metric_drop=max_drop, resume=resume,
            callbacks=progress.callbacks("sweep"),
        )  # fmt: skip
    console.print(str(found), highlight=False, soft_wrap=True)
    console.print(f"Written to {out}: sweep.html, sweep.json, a folder per budget, best/", soft_wrap=True)
