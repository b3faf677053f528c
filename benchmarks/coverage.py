"""Which models go through: inspect → transform(10 % of the gateable, no data) → export → onnxruntime parity.

    python benchmarks/coverage.py --library torchvision
    python benchmarks/coverage.py --library timm --sample 100 --seed 0
    python benchmarks/coverage.py --library hf

Random weights, with norm statistics first set by one pass in train mode, and a random head where the library starts it
at zero. One process per model. Rows are kept in `benchmarks/results/coverage-LIBRARY.jsonl` as they come, with the
commit that made them, and a run that is started again goes on where it stopped; `--again failed` runs the failures
once more. `coverage.md` is written from all of them. Failures are rows too.

`--identity` gives the models that went through another column: transform(100 %) keeps every comparison, and its outputs
are those of the model.

A sample is drawn from the models of at most `--largest` million parameters: the names in an order that the seed
decides, larger models left out. torchvision, timm and transformers are no dependencies of the package; with a CPU
build of torch, torchvision's two missing operator schemas are registered first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import autorep_fx
from autorep_fx.model_specs import build_model, example_inputs
from autorep_fx.passes.stages import largest_difference

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "onnxruntime-gpu", "torchvision", "timm", "transformers")


# Hugging Face configurations and what makes each a network of usual size; images of 224 where it gives no size.
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "BeitConfig": {"num_hidden_layers": 6},
    "BitConfig": {},
    "ConvNextConfig": {},
    "ConvNextV2Config": {},
    "CvtConfig": {},
    "DeiTConfig": {"num_hidden_layers": 6},
    "Dinov2Config": {"num_hidden_layers": 6},
    "EfficientNetConfig": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224},
    "FocalNetConfig": {},
    "LevitConfig": {},
    "MobileNetV1Config": {},
    "MobileNetV2Config": {},
    "MobileViTConfig": {},
    "PoolFormerConfig": {},
    "PvtV2Config": {},
    "RegNetConfig": {},
    "ResNetConfig": {},
    "SegformerConfig": {},
    "SwiftFormerConfig": {},
    "SwinConfig": {},
    "ViTConfig": {"num_hidden_layers": 6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=["torchvision", "timm", "hf"], default="torchvision")
    parser.add_argument("--sample", type=int, default=0, help="models to draw; 0 for all")
    parser.add_argument("--largest", type=float, default=60, help="million parameters above which none is drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names", default="", help="only these models, separated by commas")
    parser.add_argument("--again", choices=["failed"], help="run these once more")
    parser.add_argument("--identity", action="store_true", help="check a budget of everything instead")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one model")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"coverage-{options.library}.jsonl"
    rows = read_rows(path)
    if options.again:
        rows = {name: row for name, row in rows.items() if "parity" in row}
    register_schemas()
    listed = list_models(options.library)  # named or not: this imports the library, once for all that is forked
    names = options.names.split(",") if options.names else listed
    if options.sample:
        names = draw(names, options.sample, options.seed, options.largest)
    if options.identity:
        names = [name for name in names if "parity" in rows.get(name, {}) and "identity" not in rows[name]]
    else:
        names = [name for name in names if name not in rows]
    for name in names:
        row = isolated(options.library, name, options.limit, options.identity)
        rows = read_rows(path)  # another run may have written
        rows[name] = rows[name] | row if options.identity else row
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        print(row, flush=True)
        write_table()


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by model."""
    if not path.exists():
        return {}
    return {row["model"]: row for row in map(json.loads, path.read_text().splitlines())}


def list_models(library: str) -> list[str]:
    if library == "hf":
        import transformers  # noqa: F401

        return list(HUGGING_FACE)
    if library == "torchvision":
        import torchvision

        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names
    import timm

    return list(timm.list_models())


def draw(names: list[str], count: int, seed: int, largest: float) -> list[str]:
    """The first ``count`` of the shuffled names whose models have at most ``largest`` million parameters."""
    shuffled, chosen = sorted(names), []
    random.Random(seed).shuffle(shuffled)
    for name in shuffled:
        with torch.device("meta"):
            model = build_model(f"timm:{name}")
        if sum(parameter.numel() for parameter in model.parameters()) <= largest * 1e6:
            chosen.append(name)
        if len(chosen) == count:
            break
    return chosen


def register_schemas() -> None:
    """Schemas that torchvision expects from its compiled extension, which a CPU build of torch does not load."""
    global _library
    _library = torch.library.Library("torchvision", "DEF")
    for schema in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        try:
            _library.define(schema)
        except RuntimeError:  # the extension did load
            return


def isolated(library: str, name: str, limit: float, identity: bool) -> dict[str, Any]:
    """Run one model in a process of its own, for at most ``limit`` seconds; forked, so that imports are made once."""
    start, failed = time.perf_counter(), "identity" if identity else "cause"
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(sending, check_identity if identity else run, library, name, failed))
    process.start()
    sending.close()
    try:
        row = receiving.recv() if receiving.poll(limit) else {"model": name, failed: f"more than {limit:g} s"}
    except EOFError:
        process.join()
        row = {"model": name, failed: f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return row if identity else {**row, "total_seconds": round(time.perf_counter() - start, 1)}


def _send(connection: Any, check: Callable[[str, str], dict[str, Any]], library: str, name: str, failed: str) -> None:
    try:
        row = check(library, name)
    except Exception as error:  # a row, as every failure
        traceback.print_exc()
        row = {"model": name, failed: f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    connection.send(row)


def build(library: str, name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model in eval mode and an input for it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = f"{library}:{name}"
    model = build_model(spec, HUGGING_FACE[name] if library == "hf" else {})
    sized = library != "hf" or getattr(model.config, "image_size", None) is not None
    [x] = example_inputs(spec, model, () if sized else ("3x224x224",))
    with torch.no_grad():
        model.train()(x)
        for module in reversed(list(model.modules())):
            if isinstance(module, torch.nn.Linear):  # the head
                if not module.weight.any():
                    torch.nn.init.normal_(module.weight, std=0.02)
                break
    return model.eval(), x


def check_identity(library: str, name: str) -> dict[str, Any]:
    """What a row gains: the largest relative difference that a budget of everything makes, on two other samples."""
    model, x = build(library, name)
    compiled = autorep_fx.transform(model, "100%", example_inputs=x)
    if compiled.comparisons != compiled.original_comparisons:
        return {"model": name, "identity": f"{compiled.comparisons} of {compiled.original_comparisons} comparisons"}
    inputs = torch.randn(2, *x.shape[1:])
    with torch.no_grad():
        difference = largest_difference(compiled.module(inputs), model(inputs))
    return {"model": name, "identity": difference, "identity_commit": commit()}


def run(library: str, name: str) -> dict[str, Any]:
    """One row."""
    model, x = build(library, name)
    row: dict[str, Any] = {"model": name, "commit": commit()}
    try:
        found = autorep_fx.inspect(model, x)
        row |= {"sites": len(found.sites), "gateable": found.gateable, "fixed": found.fixed}
        start = time.perf_counter()
        compiled = autorep_fx.transform(model, "10%", example_inputs=x)
        row |= {"after": compiled.comparisons, "linear": sum("degree 1" in note for note in compiled.notes)}
        row["nodes"] = len(compiled.module.graph.nodes)
        with tempfile.TemporaryDirectory() as folder:
            checked = compiled.export(Path(folder) / "model.onnx")
        row |= {"parity": checked.largest_difference, "seconds": round(time.perf_counter() - start, 1)}
        allowed = found.gateable // 10 + found.fixed
        # Of a clip, which costs 2, one comparison may be left over.
        row["exact"] = checked.comparisons + compiled.unspent == allowed and compiled.unspent < 2
    except autorep_fx.AutorepError as error:
        row["cause"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row


def commit() -> str:
    """Of the checkout, with a plus where files differ from it."""
    command = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write_table() -> None:
    """`coverage.md` from all rows."""
    lines = [
        "# Coverage",
        "",
        f"{', '.join(f'{name} {version(name)}' for name in _PACKAGES)}; CPU, 1 thread.",
        "",
        "Only the models listed here have been run. `linear`: sites that calibration made degree 1. `parity`: largest",
        "difference between onnxruntime and the compiled module; `identity`: between the model and what a budget of",
        "everything makes of it; both relative to the largest output.",
        "",
    ]
    for path in sorted(RESULTS.glob("coverage-*.jsonl")):
        rows = sorted(read_rows(path).values(), key=lambda row: str(row["model"]))
        passed = sum("parity" in row and row["exact"] for row in rows)
        lines += [
            f"## {path.stem.removeprefix('coverage-')}: {passed} of {len(rows)} with parity and the exact count",
            "",
            "| model | nodes | sites | gateable | fixed | after | linear | seconds | parity | identity | cause |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
        ]
        for row in rows:
            cells = [row.get(key, "") for key in ("nodes", "sites", "gateable", "fixed", "after", "linear", "seconds")]
            texts = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
            texts += [written(row.get("parity", "")), written(row.get("identity", ""))]
            lines.append(f"| {row['model']} | {' | '.join(texts)} | {row.get('cause', '')} |")
        lines.append("")
    (RESULTS / "coverage.md").write_text("\n".join(lines))


def written(value: float | str) -> str:
    return f"{value:.1e}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
