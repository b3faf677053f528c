"""The command line: thin commands over the Python API."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from autorep_fx import __version__
from autorep_fx.cli_bench import bench
from autorep_fx.cli_cost import cost_app
from autorep_fx.cli_diff import diff
from autorep_fx.cli_inspect import inspect
from autorep_fx.cli_secure import secure_app
from autorep_fx.cli_sweep import sweep
from autorep_fx.errors import AutorepError, StoppedError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Compile PyTorch models to a budget of secure comparisons.",
)  # fmt: skip
app.command()(sweep)
app.command()(bench)
app.command()(diff)
app.command()(inspect)
config_app = typer.Typer(no_args_is_help=True, help="Write and check pipeline files.")
app.add_typer(config_app, name="config")
app.add_typer(cost_app, name="cost")
app.add_typer(secure_app, name="secure")

_console = Console()

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="Pipeline file (YAML).", show_default=False)]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        _console.print(f"autorep-fx {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what every pass does.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )  # fmt: skip


@app.command()
def demo(
    out: OutOption,
    seed: Annotated[int, typer.Option(help="Seed of split, weights and training.")] = 0,
) -> None:
    """Train a small ReLU network on digits, compile it at 5 %, 1 % and 0, and measure each."""
    from autorep_fx.demo import run_demo
    from autorep_fx.progress import TrainingProgress

    with _interruptible("Run the demo again to start anew."), TrainingProgress() as progress:
        rows = run_demo(out, seed=seed, on_step=progress.task("ReLU model"), callbacks=progress.callbacks)
    table = Table(title="Digits, test part", title_justify="left")
    for name in ("model", "comparisons", "accuracy, torch", "accuracy, onnxruntime", "time"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        table.add_row(
            row.name, f"{row.before:,} → {row.after:,}", f"{row.accuracy_torch:.2%}", f"{row.accuracy_onnx:.2%}",
            f"{row.seconds:.1f} s",
        )  # fmt: skip
    _console.print(table)
    _console.print(
        f"Per budget a folder with model.onnx, plan.json, pipeline.yaml and report.html: {out}",
        soft_wrap=True,
    )


@app.command()
def transform(
    config: ConfigOption,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)] = None,
    budget: Annotated[str | None, typer.Option(help="Another budget than the file's: 12.9K, 5%, 12900, 0.05.")] = None,
    method: Annotated[str | None, typer.Option(help="Training method in place of the file's: autorep, snl, …")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, for those read from one.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing, write nothing.")] = False,
) -> None:
    """Run a pipeline file."""
    from autorep_fx.config_io import load_pipeline
    from autorep_fx.dry_run import dry_run as check
    from autorep_fx.pipeline import run_pipeline
    from autorep_fx.progress import TrainingProgress
    from autorep_fx.training.fabric import is_first_process

    settings = load_pipeline(config, method=method).with_overrides(budget=budget, data_folder=data)
    if dry_run:
        result = check(settings)
        _console.print(str(result.inspection), highlight=False, soft_wrap=True)
        allowance = result.allowance
        allows = f"at most {allowance.total:,} comparisons ({allowance.allowed:,} gateable + {allowance.fixed:,} fixed)"
        if allowance.budget.is_cost:
            allows += ", as measured with these weights"
        _console.print(
            f"budget: {allowance.budget}: {allows}; {result.steps:,} training steps", highlight=False, soft_wrap=True
        )
        return
    if out is None:
        raise typer.BadParameter("A run needs a folder for its results.", param_hint="--out")
    with _interruptible("Finished epochs are kept; go on with --resume."), TrainingProgress() as progress:
        compiled = run_pipeline(settings, out, resume=resume, callbacks=progress.callbacks(settings.budget.short))
    if is_first_process():
        _console.print(str(compiled), highlight=False, soft_wrap=True)
        _console.print(f"Written to {out}", soft_wrap=True)


@app.command()
def verify(model: Annotated[Path, typer.Argument(help="A model.onnx that autorep-fx exported.")]) -> None:
    """Repeat an exported file's parity check with torch's outputs, and recount its comparisons."""
    from autorep_fx.export.verify import verify as run

    result = run(model / "model.onnx" if model.is_dir() else model)
    sizes = "".join(", of " + ", ".join("×".join(map(str, shape)) for shape in case) for case in result.sizes)
    sizes = f" of the example's size{sizes}" if sizes else ""
    _console.print(
        f"{model}: {result.comparisons:,} comparisons; equals torch within {result.largest_difference:.1e} of the "
        f"output scale at batches {', '.join(map(str, result.batches))}{sizes}, optimiser off and on",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def count(model: Annotated[Path, typer.Argument(help="Any ONNX file.")]) -> None:
    """Count the nominal secure comparisons of an ONNX file, for one sample."""
    from autorep_fx.cost import count_sites

    counts = count_sites(model / "model.onnx" if model.is_dir() else model)
    for name, number in counts.items():
        _console.print(f"{number:>14,}  {name}", highlight=False)
    _console.print(f"{sum(counts.values()):>14,}  total", highlight=False)


@config_app.command("init")
def config_init(
    path: Annotated[Path, typer.Argument(help="File to write.")],
    model: Annotated[str, typer.Option(help="As inspect takes it.")] = "zoo:digits_resnet",
    budget: Annotated[str, typer.Option(help="12.9K, 5%, 12900, 0.05.")] = "5%",
    data: Annotated[str, typer.Option(help="digits, cifar, image_folder, or module:function.")] = "digits",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of the model.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write a pipeline file with all defaults."""
    from autorep_fx.config import PipelineConfig
    from autorep_fx.config_io import parse_config, to_yaml
    from autorep_fx.files import write_text

    if path.exists() and not force:
        raise typer.BadParameter(f"{path} exists; pass --force to write over it.", param_hint="PATH")
    settings = {"model": {"spec": model, "checkpoint": checkpoint}, "data": {"name": data}, "budget": budget}
    write_text(path, to_yaml(parse_config(settings, PipelineConfig)))
    _console.print(f"Written: {path}", soft_wrap=True)


@config_app.command("validate")
def config_validate(path: Annotated[Path, typer.Argument(help="Pipeline file.")]) -> None:
    """Check a pipeline file."""
    from autorep_fx.config_io import load_pipeline

    load_pipeline(path)
    _console.print(f"{path} is valid.", soft_wrap=True)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of pipeline files."""
    from autorep_fx.config import PipelineConfig

    sys.stdout.write(json.dumps(PipelineConfig.model_json_schema(), indent=2) + "\n")


@contextmanager
def _interruptible(advice: str) -> Iterator[None]:
    """Turn Ctrl-C into a message and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(f"Interrupted. {advice}", soft_wrap=True)
        raise typer.Exit(130) from None


def main(args: list[str] | None = None) -> Any:
    """Entry point: typed errors become one message and exit code 1, or 143 after a SIGTERM."""
    try:
        return app(args, standalone_mode=True)
    except StoppedError as error:
        Console(stderr=True).print(_escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(143)
    except AutorepError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
