"""How compile time grows with the number of nodes, and how much memory compiling takes beside the weights.

    python benchmarks/scale.py --nodes 300 1000 3000 10000 --repeats 3
    python benchmarks/scale.py --memory 1.0

Time: residual networks of conv–bn–relu blocks with 4 channels on 8×8 images, so that arithmetic is cheap; verification
is `structure`. Memory: wide linear layers, and wide convolutions with norms, on tiny batches; the largest resident
size of a process of its own, above that of one that has built and called the model: the user's model and its example
are not counted. `canonicalise → lower` counts from what is resident after the capture, which copies the weights once.
Every process compiles a tiny model first, so that what is imported on the way is not counted either.

Writes `benchmarks/results/scale.json` and `scale.md`; what a call does not measure is kept from the last one.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autorep_fx.budget import Budget
from autorep_fx.config import TransformConfig
from autorep_fx.cost import resolve
from autorep_fx.passes.catalogue import CATALOGUE
from autorep_fx.passes.fingerprint import fingerprint
from autorep_fx.passes.graphs import sites_of
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.insert_gates import InsertGatesPass
from autorep_fx.passes.site_graph import build_site_graph
from autorep_fx.passes.site_settings import SiteSettingsPass
from autorep_fx.passes.substitute import SubstitutePass
from autorep_fx.stages import calibrate, canonicalize, capture, lower, prepare, project
from autorep_fx.training.gated_model import GatedModel

RESULTS = Path(__file__).parent / "results"
CONFIG = TransformConfig(verification="structure")
_BLOCK_NODES = 19  # captured nodes of a block: 7 calls and 12 parameters and buffers
_CHANNELS = 4
_PARTS = tuple(item.name for item in CONFIG.passes_of("lower"))
_APART = ("capture", "site graph", "substitute", "export", *_PARTS)  # not in the sum of canonicalise → lower
_KINDS = ("linear", "conv–bn")
_T = TypeVar("_T")


class Block(nn.Module):
    """conv–bn–relu–conv–bn, a sum, a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(_CHANNELS), nn.BatchNorm2d(_CHANNELS)
        nn.init.constant_(self.bn2.weight, 0.1)  # hundreds of blocks: none may add much

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + x)


def network(nodes: int) -> nn.Module:
    """A residual network of about so many captured nodes."""
    torch.manual_seed(0)
    blocks = [Block() for _ in range(round(nodes / _BLOCK_NODES))]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(_CHANNELS * 64, 10)).eval()


def wide(gigabytes: float, kind: str) -> nn.Module:
    """Layers of 64 MB each, with ReLUs between them, of so many GB of weights in all."""
    layers: list[nn.Module] = []
    for _ in range(max(1, round(gigabytes * 1e9 / (4 * 4096 * 4096)))):
        linear = [nn.Linear(4096, 4096)]
        layers += [*(linear if kind == "linear" else _convolution()), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 10)).eval()


def _convolution() -> list[nn.Module]:
    """Lowering folds the norm: the compiled module has a weight of its own, beside the one that is saved."""
    return [nn.Conv2d(4096, 4096, 1, bias=False), nn.BatchNorm2d(4096)]


class Clock:
    """Processor seconds by stage: on one thread, what a quiet machine takes, however busy this one is."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], _T]) -> _T:
        start = time.process_time()
        result = work()
        self.seconds[stage] = time.process_time() - start
        return result


def time_stages(nodes: int, *, export: bool) -> dict[str, Any]:
    """Compile a network of about ``nodes`` nodes once."""
    model, inputs, clock = network(nodes), ExampleInputs.of(torch.randn(4, _CHANNELS, 8, 8)), Clock()
    captured = clock("capture", lambda: capture(model, inputs, verification="off"))
    captured_nodes = len(captured.graph.nodes)
    canonical = clock("canonicalize", lambda: canonicalize(captured, verification="structure"))
    other = copy.deepcopy(canonical)
    clock("substitute", lambda: SubstitutePass({"relu": "silu"})(other))
    clock("site graph", lambda: build_site_graph(canonical))
    clock("site settings", lambda: SiteSettingsPass(CONFIG)(canonical))
    allowance = resolve(Budget.parse("10%"), sites_of(canonical))
    digest = clock("fingerprint", lambda: fingerprint(canonical))
    clock("insert gates", lambda: InsertGatesPass(CONFIG)(canonical))
    gated = clock("gated model", lambda: GatedModel(canonical, allowance, CONFIG, inputs, fingerprint=digest))
    clock("calibrate", lambda: calibrate(gated, inputs))
    clock("project", lambda: project(gated))
    other = copy.deepcopy(gated.network)
    for name in _PARTS:
        clock(name, lambda name=name: CATALOGUE[name]()(other))  # type: ignore[misc]
    compiled = clock("lower", lambda: lower(gated))
    if export:
        with tempfile.TemporaryDirectory() as folder:
            clock("export", lambda: compiled.export(Path(folder) / "model.onnx"))
    total = sum(value for stage, value in clock.seconds.items() if stage not in _APART)
    sizes = {"nodes": captured_nodes, "sites": len(compiled.sites)}
    return {**sizes, "seconds": clock.seconds, "canonicalise→lower": total}


def resident(gigabytes: float, kind: str, upto: str) -> float:
    """Resident size of this process, in GB: after the capture what it is then, for all others the largest so far."""
    # All that is imported on the way.
    _compile(network(40), ExampleInputs.of(torch.randn(2, _CHANNELS, 8, 8)), "export")
    shape = (2, 4096) if kind == "linear" else (2, 4096, 1, 1)
    model, inputs = wide(gigabytes, kind), ExampleInputs.of(torch.randn(shape))
    if upto == "model":
        inputs.call(model)
    elif upto == "capture":
        captured = capture(model, inputs, config=CONFIG, verification="structure")
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        del captured
        return pages * resource.getpagesize() / 1e9
    else:
        _compile(model, inputs, upto)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _compile(model: nn.Module, inputs: ExampleInputs, upto: str) -> None:
    gated = prepare(model, "10%", example_inputs=inputs, config=CONFIG)
    calibrate(gated, inputs)
    compiled = lower(project(gated), consume=True)
    del gated
    if upto == "export":
        with tempfile.TemporaryDirectory() as folder:
            compiled.export(Path(folder) / "model.onnx")


def memory(gigabytes: float, kind: str) -> dict[str, Any]:
    """Peaks of processes of their own, above that of one that only builds and calls the model."""
    found = {}
    for upto in ("model", "capture", "lower", "export"):
        command = [sys.executable, __file__, "--memory", str(gigabytes), "--kind", kind, "--upto", upto]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[upto] = float(done.stdout.strip().splitlines()[-1])
        print(kind, gigabytes, found, flush=True)
    weights = sum(parameter.nbytes for parameter in wide(gigabytes, kind).parameters()) / 1e9
    above = {stage: found[stage] - found["model"] for stage in ("lower", "export")}
    above["canonicalise→lower"] = found["lower"] - found["capture"]
    return {"kind": kind, "weights_gb": weights, "peaks_gb": found, **above}


def conditions() -> dict[str, Any]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime-gpu", "numpy")
    return {
        "cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        **{name: version(name) for name in packages},
    }  # fmt: skip


def measure(sizes: list[int], repeats: int, largest_export: int) -> list[dict[str, Any]]:
    """Medians over the repeats."""
    rows = []
    for nodes in sizes:
        runs = [time_stages(nodes, export=nodes <= largest_export) for _ in range(repeats)]
        seconds = {stage: statistics.median(run["seconds"][stage] for run in runs) for stage in runs[0]["seconds"]}
        total = statistics.median(run["canonicalise→lower"] for run in runs)
        rows.append({**runs[0], "repeats": repeats, "seconds": seconds, "canonicalise→lower": total})
        print({k: round(v, 2) for k, v in seconds.items()}, round(total, 2), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest-export", type=int, default=3000, help="nodes above which nothing is exported")
    parser.add_argument("--memory", type=float, nargs="*", default=[], metavar="GB")
    parser.add_argument("--kind", choices=_KINDS, help="of layers, for --upto")
    parser.add_argument("--upto", choices=["model", "capture", "lower", "export"], help="measure this process")
    options = parser.parse_args()
    if options.upto:
        print(resident(options.memory[0], options.kind, options.upto))
        return
    path = RESULTS / "scale.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result["conditions"] = conditions()
    if options.nodes:
        rows = {row["nodes"]: row for row in result.get("time", [])}
        rows |= {row["nodes"]: row for row in measure(options.nodes, options.repeats, options.largest_export)}
        result["time"] = [rows[nodes] for nodes in sorted(rows)]
    if options.memory:
        result["memory"] = [memory(gigabytes, kind) for kind in _KINDS for gigabytes in options.memory]
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    (RESULTS / "scale.md").write_text(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    stated = ", ".join(f"{key} {value}" for key, value in result["conditions"].items())
    lines = ["# Scale", "", f"`benchmarks/scale.py`; {stated}.", ""]
    rows = result.get("time", [])
    if rows:
        stages = [stage for stage in rows[0]["seconds"] if stage not in _APART]
        lines += [
            "## Processor seconds by captured nodes",
            "",
            f"Medians of {', '.join(str(row['repeats']) for row in rows)} runs; verification `structure`. Below the",
            "sum, what is not in it: capture is `torch.export`, export is ONNX translation and parity, and the passes",
            "of `lower` and what only `inspect` or `substitute` call are timed once more alone.",
            "",
            "| | " + " | ".join(f"{row['nodes']:,} nodes, {row['sites']} sites" for row in rows) + " |",
            "|---|" + "--:|" * len(rows),
            *(_line(stage, [row["seconds"].get(stage) for row in rows]) for stage in stages),
            _line("**canonicalise → lower**", [row["canonicalise→lower"] for row in rows]),
            _line("milliseconds per node", [1000 * row["canonicalise→lower"] / row["nodes"] for row in rows]),
            *(_line(f"({stage})", [row["seconds"].get(stage) for row in rows]) for stage in _APART),
            "",
        ]
    if result.get("memory"):
        headed = [f"{what} | in weights" for what in ("canonicalise → lower", "capture → lower", "capture → export")]
        lines += [
            "## Peak memory in GB",
            "",
            "Largest resident size of a process of its own, above that of one that builds and calls the model; each",
            "has compiled a tiny model before. `lower(..., consume=True)`, as `transform` does. From canonicalise on",
            "what is resident after the capture is not counted.",
            "",
            _row("layers", "weights", "import and model", *headed),
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in result["memory"]:
            weights, base = row["weights_gb"], row["peaks_gb"]["model"]
            parts = [f"{row[k]:.2f} | {row[k] / weights:.2f}×" for k in ("canonicalise→lower", "lower", "export")]
            lines.append(_row(row["kind"], f"{weights:.2f}", f"{base:.2f}", *parts))
        lines.append("")
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _line(name: str, values: list[float | None]) -> str:
    return f"| {name} | " + " | ".join("" if value is None else f"{value:.2f}" for value in values) + " |"


if __name__ == "__main__":
    main()
