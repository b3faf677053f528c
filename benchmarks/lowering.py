"""Speed of lowered models in onnxruntime: their time over that of the all-ReLU model which the same tool exported.

    python benchmarks/lowering.py
    python benchmarks/lowering.py --models resnet18 --gates element --batches 1 --pairs 9

Element gates keep 2.6 % of the elements and channel gates that share of the channels, drawn at random; without
comparisons everything is replaced. All polynomials are quadratic. Weights are random, which changes nothing of what is
computed. Files are exported for `--target`, by default for onnxruntime's CPU alone. Both models run in turns in one
process, their idle threads stopped between runs (they would spin on the cores of the other model), for `--pairs` pairs
or about `--seconds`, whichever is more; the ratio of each pair is taken, and the median over the pairs reported, with
quartiles. Lowering and export are timed once per form, and the peak memory of a process that does nothing else is
measured for each model with `--memory`. Writes `benchmarks/results/lowering.json` and `.md`.

torchvision is no dependency of the package; without it, leave its ResNet-50 out by `--models`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import autorep_fx
from autorep_fx.cost.arithmetic import graph_cost
from autorep_fx.model_specs import build_model
from autorep_fx.runtime.bench import alternate
from autorep_fx.runtime.session import Session

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "resnet18": ("zoo:resnet18", 32), "wide_resnet22_8": ("zoo:wide_resnet22_8", 32),
    "torchvision resnet50": ("torchvision:resnet50", 224),
}  # fmt: skip
GATES = {"element": 0.026, "channel": 0.026, "none": 0.0}
# About what fits give for inputs of unit variance, with c2 small enough that noise does not explode: all quadratic.
POLYNOMIAL = (0.2, 0.5, 0.08)
TARGETS = {"element": 1.15, "channel": 1.08, "none": 1.03}
_PACKAGES = ("torch", "onnxruntime-gpu", "onnx", "onnxscript")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--gates", nargs="+", default=list(GATES), choices=list(GATES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--target", choices=["onnxruntime-cpu", "any"], default="onnxruntime-cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory of lowering and export, in a fresh process")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(_alone(options.alone)))
        return
    rows: list[dict[str, Any]] = []
    memory: dict[str, Any] = {}
    for name in options.models:
        rows += measured(name, options)
        if options.memory:
            memory[name] = _in_a_process(name)
    stated = {
        "pairs": f"at least {options.pairs} and {options.seconds:g} s", "threads": options.threads,
        "export target": options.target,
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        **{package: version(package) for package in _PACKAGES},
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "lowering"
    target.with_suffix(".json").write_text(
        json.dumps({"conditions": stated, "rows": rows, "memory": memory}, indent=2) + "\n"
    )
    target.with_suffix(".md").write_text(_markdown(rows, memory, stated))
    print(target.with_suffix(".md").read_text())


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per form of the gates and batch."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, x = _model(name)
        plain = autorep_fx.transform(model, "100%", example_inputs=x)
        plain.export(Path(folder) / "plain.onnx")
        for gates in options.gates:
            gated, kept = _gated(model, x, gates)
            start = time.perf_counter()
            compiled = autorep_fx.lower(gated)
            path = Path(folder) / f"{gates}.onnx"
            compiled.export(path, target=options.target)
            seconds = time.perf_counter() - start
            left = _multiplications(compiled, plain)
            for batch in options.batches:
                ratios = _ratios(Path(folder) / "plain.onnx", path, x, batch, options)
                rows.append({
                    "model": name, "gates": gates, "batch": batch, **ratios, "target": TARGETS[gates], "kept": kept,
                    "comparisons": compiled.comparisons, "compile_seconds": seconds,
                    "multiplications_per_replaced": left,
                })  # fmt: skip
                print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def _model(name: str) -> tuple[nn.Module, torch.Tensor]:
    spec, size = MODELS[name]
    if spec.startswith("torchvision"):
        from coverage import register_schemas  # the benchmark beside this one

        register_schemas()
    torch.manual_seed(0)
    model = build_model(spec)
    x = torch.randn(8 if size < 100 else 2, 3, size, size)
    model.train()
    with torch.no_grad():
        model(x)  # norm statistics of its own
    return model.eval(), x


def _gated(model: nn.Module, x: torch.Tensor, gates: str) -> tuple[autorep_fx.GatedModel, float]:
    """A model whose gates are drawn at random, and the share that they keep."""
    share = GATES[gates]
    settings: dict[str, Any] = {"gates": {"granularity": "site" if gates == "none" else gates}}
    gated = autorep_fx.prepare(model, share, example_inputs=x, config=settings)
    generator = torch.Generator().manual_seed(0)
    for gate in gated.gates.values():
        gate.score.data.copy_(torch.rand(gate.score.shape, generator=generator))
        spread = 0.8 + 0.4 * torch.rand(3, gate.site.channels, generator=generator)
        gate.set_coefficients(torch.tensor(POLYNOMIAL)[:, None] * spread)
    autorep_fx.project(gated)
    kept = sum(gate.kept_comparisons for gate in gated.gates.values())
    return gated, kept / sum(gate.site.comparisons for gate in gated.gates.values())


def _multiplications(compiled: autorep_fx.Compiled, plain: autorep_fx.Compiled) -> float:
    """Products that are no part of a linear layer, per replaced element."""
    cost = graph_cost(list(compiled.module.graph.nodes))
    products = sum(node.multiplications + node.macs for node in cost.nodes if node.operator == "mul")
    replaced = plain.comparisons - compiled.comparisons
    return products / max(1, replaced)


def _ratios(one: Path, other: Path, x: torch.Tensor, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    sessions = [Session(path, "cpu", threads=options.threads, spinning="running") for path in (one, other)]
    value = np.resize(x.numpy(), (batch, *x.shape[1:])).astype(np.float32)
    runs = [partial(session.run, value) for session in sessions]
    [first], [second] = alternate(runs, 1, 1)
    times = alternate(runs, max(options.pairs, round(options.seconds / (first + second))), 1)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    plain = 1e3 * statistics.median(times[0])
    return {"ratio": middle, "quartiles": [low, high], "plain_ms": plain, "pairs": len(ratios)}


def _alone(name: str) -> dict[str, Any]:
    """Time and peak memory of a process that lowers and exports a gated model."""
    model, x = _model(name)
    gated, _ = _gated(model, x, "element")
    weights = sum(p.nbytes for p in model.parameters())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size starts anew
    before, start = _resident("VmRSS"), time.perf_counter()
    compiled = autorep_fx.lower(gated)
    with tempfile.TemporaryDirectory() as folder:
        compiled.export(Path(folder) / "m.onnx")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "weights": weights, "peak": _resident("VmHWM"), "before": before}


def _resident(field: str) -> int:
    """Bytes of a line of this process's status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _in_a_process(name: str) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, __file__, "--alone", name], check=True, capture_output=True, text=True
    ).stdout
    result: dict[str, Any] = json.loads(found.strip().splitlines()[-1])
    return result


def _markdown(rows: list[dict[str, Any]], memory: dict[str, Any], stated: dict[str, Any]) -> str:
    lines = [
        "# Speed of lowered models", "",
        "Median over pairs of (time of the lowered model) / (time of the all-ReLU model), quartiles in brackets.", "",
        "| model | gates | batch | ratio | target | pairs | all-ReLU | products per replaced one | lower + export |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['model']} | {row['gates']} | {row['batch']} | {row['ratio']:.3f} ({low:.3f}–{high:.3f}) | "
            f"{row['target']} | {row['pairs']} | {row['plain_ms']:.1f} ms | "
            f"{row['multiplications_per_replaced']:.3f} | {row['compile_seconds']:.1f} s |"
        )
    for name, found in memory.items():
        sizes = ", ".join(
            f"{said} {found[key] / 2**20:.0f} MiB"
            for said, key in (("resident before", "before"), ("at most", "peak"), ("weights", "weights"))
        )
        lines += ["", f"{name}, lowering and export in a process of their own: {found['seconds']:.1f} s, {sizes}"]
    return "\n".join([*lines, "", ", ".join(f"{key}: {value}" for key, value in stated.items()), ""])


if __name__ == "__main__":
    main()
