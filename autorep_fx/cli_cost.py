"""The commands ``cost``: what a model costs under secure protocols before any engine runs, and measuring an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from autorep_fx.console import table_console
from autorep_fx.cost.network import Network
from autorep_fx.cost.predict import Prediction

__all__ = ["cost_app"]


class _PredictsByDefault(TyperGroup):
    """``cost MODEL`` is ``cost predict MODEL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command in front where none is given."""
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named or not args else ["predict", *args])


cost_app = typer.Typer(
    cls=_PredictsByDefault, no_args_is_help=True,
    help="What a model costs under secure protocols: autorep-fx cost MODEL.",
)  # fmt: skip


@cost_app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)],
    protocol: Annotated[str, typer.Option(help="A protocol of the profile, several with commas, or all.")] = "all",
    network: Annotated[str, typer.Option(help="lan (1 Gbps, 0.5 ms), wan (100 Mbps, 40 ms) or 50Mbps,20ms.")] = "lan",
    batch: Annotated[int | None, typer.Option(min=1, help="Samples in a query; default: the model's, or 1.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Cost profile; by default the measured one of SPU.")] = None,
    nodes: Annotated[bool, typer.Option(help="Also every node, for each protocol.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Predict bytes, messages and time on the network of one query, and say what is not known."""
    from autorep_fx.cost.onnx_count import load_model
    from autorep_fx.cost.onnx_shapes import fixed_batch
    from autorep_fx.cost.predict import predict as predict_query
    from autorep_fx.cost.primitives import secure_work
    from autorep_fx.cost.profile import load_profile

    link, costs = Network.parse(network), load_profile(profile)
    names = list(costs.protocols) if protocol == "all" else [name.strip() for name in protocol.split(",")]
    chosen = {name: costs.protocol(name) for name in names}
    loaded = load_model(model)
    batch = batch or fixed_batch(loaded) or 1
    ring = costs.fixed_point.ring_bits
    found = [
        predict_query(secure_work(loaded, batch, protocol=name, ring_bits=ring), name, item)
        for name, item in chosen.items()
    ]
    if as_json:
        stated = {"model": str(model), "batch": batch, "profile": costs.name, "network": network}
        rows = [{**item.to_json(), **_seconds(item, link)} for item in found]
        typer.echo(json.dumps({**stated, "protocols": rows}, indent=2))
        return
    console = table_console()
    console.print(_totals(found, link, f"{model.name}, batch {batch}, predicted from {costs.name}"))
    for item in found:
        for line in _remarks(item):
            console.print(line, highlight=False, soft_wrap=True)
    for item in found if nodes else ():
        console.print(_nodes(item))


@cost_app.command()
def calibrate(
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the profile.", show_default=False)],
    protocol: Annotated[str, typer.Option(help="Protocols of the engine, with commas.")] = "semi2k,aby3,cheetah",
    timeout: Annotated[float, typer.Option(help="Seconds that a party waits for another.")] = 600.0,
) -> None:
    """Measure the engine's operations by simulated parties, and write a profile for --profile."""
    from autorep_fx.files import write_text
    from autorep_fx.runtime.secure.calibrate import calibrate as measure
    from autorep_fx.runtime.secure.threads import limit_threads

    limit_threads()
    names = [name.strip() for name in protocol.split(",") if name.strip()]
    profile = measure(names, timeout=timeout)
    write_text(out, profile.model_dump_json(indent=2, exclude_defaults=True) + "\n")
    Console().print(f"{profile.name}: {', '.join(profile.protocols)} in {out}", highlight=False, soft_wrap=True)


def _seconds(item: Prediction, link: Network) -> dict[str, float | None]:
    """Seconds by what they are: computation was measured, the rest follows from bytes and messages."""
    return {
        "predicted_link_seconds": item.link_seconds(link),
        "measured_compute_seconds": item.compute_seconds,
        "predicted_seconds": item.seconds(link),
    }


def _totals(found: list[Prediction], link: Network, title: str) -> Table:
    table = Table("protocol", title=title)
    columns = ("comparisons", "MB, all parties", "MB, setup", "messages", "rounds")
    for name in (*columns, f"s on {link.name}", "s compute", "s in all"):
        table.add_column(name, justify="right")
    for item in found:
        size = f"{item.known_bytes / 1e6:,.3f}" if item.bytes is not None else f"> {item.known_bytes / 1e6:,.3f}"
        table.add_row(
            item.protocol + ("" if item.verified else " (unverified)"),
            ("" if item.comparisons_complete else "> ") + f"{item.comparisons:,}", size,
            f"{item.setup_bytes / 1e6:,.3f}", _number(item.messages), _number(item.rounds),
            *("–" if value is None else f"{value:.3f}" for value in _seconds(item, link).values()),
        )  # fmt: skip
    return table


def _remarks(item: Prediction) -> list[str]:
    lines = [f"{item.protocol}: {item.note}."]
    if item.unknown:
        listed = ", ".join(f"{name} at {number} nodes" for name, number in item.unknown.items())
        lines.append(f"{item.protocol}: not in the prediction, for want of a cost: {listed}.")
    return lines


def _nodes(item: Prediction) -> Table:
    table = Table("node", "operator", title=item.protocol)
    for name in ("comparisons", "bytes", "messages"):
        table.add_column(name, justify="right")
    for node in item.nodes:
        table.add_row(
            node.name, node.operator, f"{node.comparisons:,}", _number(node.bytes), _number(node.messages)
        )  # fmt: skip
    return table


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
