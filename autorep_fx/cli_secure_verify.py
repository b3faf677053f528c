"""The command ``secure verify``: the release gate of a model in fixed point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from autorep_fx.cli_secure_options import (
    FractionOption,
    InputOption,
    JsonOption,
    ModelArgument,
    ProtocolOption,
    RingOption,
    model_file,
    read_samples,
)

if TYPE_CHECKING:
    from autorep_fx.runtime.secure.verify import FixedPointReport

__all__ = ["verify"]


def verify(
    model: ModelArgument,
    input: InputOption,
    labels: Annotated[Path | None, typer.Option("--labels", "-l", help="Classes of the samples: .npy (N,).")] = None,
    protocol: ProtocolOption = "cheetah",
    ring_bits: RingOption = 0,
    fraction_bits: FractionOption = 0,
    max_drop: Annotated[float, typer.Option(help="Accuracy that may be lost, as a share; needs --labels.")] = 0.005,
    max_flips: Annotated[float, typer.Option(help="Share of samples whose class may change.")] = 0.01,
    headroom: Annotated[float, typer.Option(help="Bits that every operation must have left in the ring.")] = 2.0,
    worst: Annotated[int, typer.Option(min=0, help="Operations to list, the least headroom first.")] = 8,
    as_json: JsonOption = None,
) -> None:
    """Emulate a model in fixed point on held-out samples; the exit code is 1 if it must not be released."""
    from autorep_fx.files import write_text
    from autorep_fx.runtime.secure.protocols import Settings
    from autorep_fx.runtime.secure.verify import verify_fixed_point

    settings = Settings(protocol, ring_bits, fraction_bits) if ring_bits else None
    classes = read_samples(labels)[0] if labels else None
    found = verify_fixed_point(
        model_file(model), read_samples(input), classes, settings, protocol=protocol, max_drop=max_drop,
        max_flips=max_flips, headroom=headroom,
    )  # fmt: skip
    if as_json is not None:
        write_text(as_json, json.dumps(found.to_json(), indent=2) + "\n")
    _print(found, worst)
    if found.failures:
        raise typer.Exit(1)


def _print(found: FixedPointReport, worst: int) -> None:
    console = Console()
    settings = found.settings
    console.print(
        f"Ring of {settings.ring_bits} bits, {settings.fraction_bits} of them fraction; {found.samples} samples, "
        f"largest error {found.max_error:.2g}, {len(found.flips)} class(es) changed.", soft_wrap=True, highlight=False,
    )  # fmt: skip
    if found.accuracy_clear is not None:
        console.print(f"Accuracy {found.accuracy_clear:.2%} in the clear, {found.accuracy_fixed:.2%} in fixed point.")
    for flip in found.flips[:worst]:
        console.print(
            f"  sample {flip.sample}: class {flip.clear} becomes {flip.fixed}; it led by {flip.margin:.2g}",
            highlight=False,
        )
    table = Table("operation", "operator", title="Least headroom", title_justify="left")
    for name in ("largest", "bits left"):
        table.add_column(name, justify="right")
    for item in found.ranges[:worst]:
        table.add_row(item.name, item.operator, f"{item.largest:.3g}", f"{item.headroom(settings):.1f}")
    console.print(table)
    for text in found.failures:
        console.print(f"Not to be released: {text}.", style="red", highlight=False, soft_wrap=True)
    if not found.failures:
        bits = f"--ring-bits {settings.ring_bits} --fraction-bits {settings.fraction_bits}"
        console.print(f"May be released, to be run with {bits}.", style="green", highlight=False, soft_wrap=True)
