"""Which models go through: inspect → transform(10 % of the gateable, no data) → export → onnxruntime parity.

    python benchmarks/coverage.py --library torchvision
    python benchmarks/coverage.py --library timm --sample 100 --seed 0

Random weights, with norm statistics first set by one pass in train mode, and a random head where the library starts it
at zero. One process per model. Rows are kept in `benchmarks/results/coverage-LIBRARY.jsonl` as they come, and a run
that is started again goes on where it stopped; `coverage.md` is written from all of them. Failures are rows too.
torchvision
and timm are no dependencies of the package; with a CPU build of torch, torchvision's two missing operator schemas are
registered first.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_TIMEOUT = 900  # seconds for one model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=["torchvision", "timm"], default="torchvision")
    parser.add_argument("--sample", type=int, default=0, help="models to draw; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names", default="", help="only these models, separated by commas")
    parser.add_argument("--one", help="run one model in this process and print its row as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.library, options.one)))
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"coverage-{options.library}.jsonl"
    done = {json.loads(line)["model"] for line in path.read_text().splitlines()} if path.exists() else set()
    names = options.names.split(",") if options.names else list_models(options.library)
    if options.sample:
        names = sorted(random.Random(options.seed).sample(names, options.sample))
    for name in names:
        if name not in done:
            row = isolated(options.library, name)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row)
            write_table()


def list_models(library: str) -> list[str]:
    register_schemas()
    if library == "torchvision":
        import torchvision

        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names
    import timm

    return list(timm.list_models())


def register_schemas() -> None:
    """Schemas that torchvision expects from its compiled extension, which a CPU build of torch does not load."""
    import torch

    global _library
    _library = torch.library.Library("torchvision", "DEF")
    for schema in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        try:
            _library.define(schema)
        except RuntimeError:  # the extension did load
            return


def isolated(library: str, name: str) -> dict[str, Any]:
    """Run one model in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--library", library, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        row = {"model": name, "cause": f"more than {_TIMEOUT} s"}
    except (IndexError, json.JSONDecodeError):
        row = {"model": name, "cause": f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}"}
    return {**row, "total_seconds": round(time.perf_counter() - start, 1)}


def build(library: str, name: str) -> tuple[Any, tuple[int, ...]]:
    """The model with random weights, and the shape of one sample."""
    import torch

    torch.manual_seed(0)
    if library == "torchvision":
        import torchvision

        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
        size = {"inception_v3": 299}.get(name, 224)
        return model, (3, size, size)
    import timm

    model = timm.create_model(name, pretrained=False)
    return model, tuple(model.default_cfg.get("input_size", (3, 224, 224)))


def run(library: str, name: str) -> dict[str, Any]:
    """One row."""
    register_schemas()
    import torch

    import autorep_fx

    torch.set_num_threads(1)
    model, shape = build(library, name)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        model.train()(x)
        for module in reversed(list(model.modules())):
            if isinstance(module, torch.nn.Linear):  # the head
                if not module.weight.any():
                    torch.nn.init.normal_(module.weight, std=0.02)
                break
    model.eval()
    row: dict[str, Any] = {"model": name}
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
        row["exact"] = checked.comparisons == found.gateable // 10 + found.fixed
    except autorep_fx.AutorepError as error:
        row["cause"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row


def write_table() -> None:
    """`coverage.md` from all rows."""
    lines = [
        "# Coverage",
        "",
        f"torch {version('torch')}, onnxruntime-gpu {version('onnxruntime-gpu')}, CPU, 1 thread.",
        "",
        "Only the models listed here have been run. `linear`: sites that calibration made degree 1.",
        "",
    ]
    for path in sorted(RESULTS.glob("coverage-*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        passed = sum("parity" in row for row in rows)
        lines += [f"## {path.stem.removeprefix('coverage-')}: {passed} of {len(rows)} with parity", ""]
        lines += ["| model | nodes | sites | gateable | fixed | after | linear | seconds | parity | cause |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"]
        for row in rows:
            cells = [row.get(key, "") for key in ("nodes", "sites", "gateable", "fixed", "after", "linear", "seconds")]
            texts = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
            parity = f"{row['parity']:.1e}" if "parity" in row else ""
            lines.append(f"| {row['model']} | {' | '.join(texts)} | {parity} | {row.get('cause', '')} |")
        lines.append("")
    (RESULTS / "coverage.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
