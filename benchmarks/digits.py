"""The demo over several seeds: accuracy after compilation, with mean and spread.

    python benchmarks/digits.py --seeds 3

Writes `benchmarks/results/digits.json` and `digits.md`. Each seed decides split, weights and training; accuracies
are of the test part, which is touched once per model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from autorep_fx.demo import BUDGETS, run_demo

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    rows: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ("ReLU", *BUDGETS)}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            for row in run_demo(folder, seed=seed):
                rows[row.name].append((row.after, row.accuracy_onnx, row.seconds))
                print(seed, row)
    conditions = {
        "seeds": list(seeds), "cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "onnxruntime-gpu", "numpy")},
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "digits.json").write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=2) + "\n")
    (RESULTS / "digits.md").write_text(_markdown(rows, conditions))


def _markdown(rows: dict[str, list[tuple[int, float, float]]], conditions: dict[str, object]) -> str:
    stated = ", ".join(f"{key} {value}" for key, value in conditions.items())
    lines = [
        "# Digits: accuracy after compilation",
        "",
        f"`benchmarks/digits.py`, {stated}.",
        "Accuracy in onnxruntime on the test part, mean over the seeds (lowest); seconds to train or compile, export",
        "and report, median.",
        "",
        "| model | comparisons | accuracy | change in points | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    base = [accuracy for _, accuracy, _ in rows["ReLU"]]
    for name, values in rows.items():
        accuracies = [accuracy for _, accuracy, _ in values]
        change = 100 * statistics.mean(a - b for a, b in zip(accuracies, base, strict=True))
        seconds = statistics.median(v[2] for v in values)
        accuracy = f"{statistics.mean(accuracies):.2%} ({min(accuracies):.2%})"
        lines.append(f"| {name} | {values[0][0]:,} | {accuracy} | {change:+.2f} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
