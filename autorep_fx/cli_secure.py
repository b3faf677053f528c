"""The commands ``secure``: split a model, run it, take part as a party, make test certificates."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

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
from autorep_fx.cli_secure_profile import ProfileOption, check_profile_file, print_profile, write_profile
from autorep_fx.cli_secure_verify import verify
from autorep_fx.errors import AutorepError, EngineMissingError, SecureProgramError

if TYPE_CHECKING:
    from autorep_fx.runtime.secure.public import PublicProgram
    from autorep_fx.runtime.secure.results import SecureRun

__all__ = ["secure_app"]

secure_app = typer.Typer(no_args_is_help=True)
secure_app.command()(verify)


@secure_app.callback()
def _secure() -> None:
    """Run models under secure multi-party computation."""
    from autorep_fx.runtime.secure.threads import limit_threads

    limit_threads()


OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write the outputs here: .npy or .npz.")]
BatchOption = Annotated[int | None, typer.Option(help="Samples per query; all in one if unset.")]
LogOption = Annotated[Path | None, typer.Option(help="Folder to keep the engine's raw logs in.")]
DealerOption = Annotated[
    bool, typer.Option("--insecure-dealer", help="Execute semi2k although its dealer could learn everything.")
]


@secure_app.command()
def split(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the two files.", show_default=False)],
) -> None:
    """Split a model into a public program, for everyone, and weights, for the server alone."""
    from autorep_fx.runtime.secure.split import split_model

    parts = split_model(model_file(model))
    program, weights = parts.save(out)
    console = Console()
    console.print(f"Public, for every party: {program} (SHA-256 {parts.program.digest})", soft_wrap=True)
    console.print(f"Secret, for the server alone: {weights}", soft_wrap=True)
    console.print("What the public program tells everyone:")
    for leak in parts.program.leaks:
        console.print(f"  {leak}", highlight=False, soft_wrap=True)
    problem = _cannot_run(parts.program)
    if problem is not None:
        console.print(f"Warning: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _cannot_run(program: PublicProgram) -> AutorepError | None:
    """What the engine has no form for, as far as can be told here: that takes jax."""
    from autorep_fx.runtime.secure.program import JaxProgram

    try:
        JaxProgram(program)
    except EngineMissingError:
        return None
    except SecureProgramError as error:
        return error
    return None


@secure_app.command()
def run(
    model: ModelArgument,
    input: InputOption,
    protocol: ProtocolOption = "cheetah",
    mode: Annotated[str, typer.Option(help="plain, simulate or execute.")] = "simulate",
    batch: BatchOption = None,
    ring_bits: RingOption = 64,
    fraction_bits: FractionOption = 0,
    timeout: Annotated[float, typer.Option(help="Seconds that a party waits for another.")] = 600.0,
    insecure_dealer: DealerOption = False,
    output: OutputOption = None,
    as_json: JsonOption = None,
    log: LogOption = None,
    profile: ProfileOption = None,
) -> None:
    """Run a model in the clear, by simulated parties, or by real processes on this machine."""
    from autorep_fx.runtime.secure.protocols import Settings
    from autorep_fx.runtime.secure.run import run_model
    from autorep_fx.runtime.secure.split import split_model
    from autorep_fx.runtime.secure.verify import fitting_settings

    check_profile_file(profile)
    path, samples = model_file(model), read_samples(input)
    if ring_bits:
        settings = Settings(protocol, ring_bits, fraction_bits)
    else:
        settings = fitting_settings(split_model(path), samples, protocol)
    result = run_model(
        path, samples, settings, mode=mode, batch=batch, timeout=timeout,
        insecure_dealer=insecure_dealer, log=log, profile=profile is not None,
    )  # fmt: skip
    _write(result, output, as_json)
    _print(result)
    if profile is not None:
        write_profile(result, profile, title=model.name)
        print_profile(result)


@secure_app.command()
def party(
    rank: Annotated[int, typer.Option(help="Place in the list of parties, from 0.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="parties.yaml, the same at all parties.")],
    key: Annotated[Path, typer.Option(help="Private key of this rank's certificate (PEM).")],
    weights: Annotated[Path | None, typer.Option(help="weights.safetensors; for the server.")] = None,
    input: Annotated[Path | None, typer.Option("--input", "-i", help="Samples, .npy or .npz; for the client.")] = None,
    batch: BatchOption = None,
    insecure_dealer: DealerOption = False,
    output: OutputOption = None,
    as_json: JsonOption = None,
    log: LogOption = None,
) -> None:
    """Take part in a session as one party, in a process of its own."""
    code = 1
    try:
        _take_part(rank, config, key, weights, input, batch, insecure_dealer, output, as_json, log)
        code = 0
    except AutorepError as error:
        Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        code = 130
    except Exception:  # a defect: it is shown, but must not leave a process that hangs
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the engine's threads wait for parties that may be gone


def _take_part(
    rank: int, config: Path, key: Path, weights: Path | None, input: Path | None, batch: int | None,
    insecure_dealer: bool, output: Path | None, as_json: Path | None, log: Path | None,
) -> None:  # fmt: skip
    from autorep_fx.files import output_directory
    from autorep_fx.runtime.secure.engine import require_spu
    from autorep_fx.runtime.secure.link import lost_party
    from autorep_fx.runtime.secure.native_exit import on_native_exit
    from autorep_fx.runtime.secure.native_output import divert
    from autorep_fx.runtime.secure.parties import load_parties
    from autorep_fx.runtime.secure.run import queries_of

    require_spu()
    from autorep_fx.runtime.secure.party import NATIVE_LOG, Party

    parties = load_parties(config, rank, key)
    if log is not None:
        divert(output_directory(log) / NATIVE_LOG)
    queries = None if input is None else queries_of(read_samples(input), batch)
    lost = lost_party(parties.timeout, "a message could not be delivered to it")
    on_native_exit(f"Error: {lost}\n")
    member = Party(
        parties, rank, key, weights=weights, queries=queries, insecure_dealer=insecure_dealer, log=log
    )  # fmt: skip
    result = member.run()
    _write(result, output if result.outputs else None, as_json)
    _print(result)


@secure_app.command()
def certs(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for certificates and keys.", show_default=False)],
    names: Annotated[str, typer.Option(help="Names, separated by commas.")] = "client,server",
    days: Annotated[int, typer.Option(help="Days that they are valid.")] = 30,
) -> None:
    """Make self-signed certificates and keys, for tests and trials, and print their fingerprints."""
    from autorep_fx.runtime.secure.certificates import fingerprint, make_certificates

    console = Console()
    for path in make_certificates(out, [name.strip() for name in names.split(",") if name.strip()], days=days):
        console.print(f"{path}  sha256: {fingerprint(path)}", highlight=False, soft_wrap=True)
    console.print("Test certificates: the keys are not encrypted. Give each key to its party alone.", soft_wrap=True)


def _write(result: SecureRun, output: Path | None, as_json: Path | None) -> None:
    import numpy as np

    from autorep_fx.files import atomic_path, write_text

    if output is not None:
        with atomic_path(output) as temporary, temporary.open("wb") as file:
            if output.suffix == ".npz" or len(result.outputs) > 1:
                np.savez(file, *result.outputs)
            else:
                np.save(file, result.outputs[0])
    if as_json is not None:
        write_text(as_json, json.dumps(result.to_json(), indent=2) + "\n")


def _print(result: SecureRun) -> None:
    value, console = result.to_json(), Console()

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    line(f"{value['mode']}: {value['samples']} sample(s) in {len(value['queries'])} query(s), "
         f"{value['comparisons']:,} comparisons, {value['seconds']:.3f} s after {value['compile_seconds']:.1f} s "
         "of compilation")  # fmt: skip
    if value["measured_bytes"] is not None:
        setup = value["setup"]
        line(f"sent by all parties together: {value['measured_bytes']:,} bytes in {value['messages']:,} messages in "
             f"queries; {setup['bytes']:,} bytes in {setup['messages']:,} messages once per session")  # fmt: skip
        threat = value["threat_model"]
        line(f"{threat['protocol']}: {', '.join(threat['parties'])}; corruption: {threat['corruption']}; "
             f"trust: {threat['trust']}; dealer: {threat['dealer']}")  # fmt: skip
    if value["max_error"] is not None:
        line(f"largest difference to onnxruntime: {value['max_error']:.3g}")
    for text in (*(f"leaks: {leak}" for leak in value["leaks"]), *value["notes"]):
        line(text)
