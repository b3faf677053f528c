"""The command ``inspect``: what a model compares, before anything is changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["inspect"]


def inspect(
    model: Annotated[
        str, typer.Argument(help="zoo:NAME, torchvision:NAME, timm:NAME, hf:CONFIG, or module:function that makes it.")
    ],
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input", "-i", show_default=False,
            help="Shape of one sample, such as 3x32x32; int64:12 for indices. Once per positional input. "
            "Unset: what the library gives for the model.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    graph: Annotated[Path | None, typer.Option(help="Draw the site graph into this .svg.", show_default=False)] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; random ones if unset.", show_default=False)] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML with capture, gates, substitute or sites.", show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """List what a model compares, and where, and what no gate removes."""
    import torch

    from autorep_fx.config import ModelConfig
    from autorep_fx.config_io import load_yaml, parse_config
    from autorep_fx.errors import ConfigError
    from autorep_fx.inspection import inspect as run
    from autorep_fx.loading import load_model
    from autorep_fx.model_specs import example_inputs
    from autorep_fx.report.site_graph_svg import check_svg, write_site_graph

    if graph is not None:
        check_svg(graph)
    settings = parse_config(load_yaml(config) if config else None)
    torch.manual_seed(0)  # of random weights and of the example
    built = load_model(ModelConfig(spec=model, checkpoint=checkpoint))
    try:
        examples = example_inputs(model, built, input or ())
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--input") from error
    found = run(built, examples, config=settings)
    if graph is not None:
        write_site_graph(found.graph, graph, title=model)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n")
    else:
        Console().print(str(found), highlight=False, markup=False, soft_wrap=True)
