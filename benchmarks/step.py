"""Time and memory of a training step: a gated network against the plain ReLU network.

    python benchmarks/step.py
    python benchmarks/step.py --device cuda --precision bf16 --channels-last --batch 128

Plain and gated steps alternate in one process; the ratio of each pair is taken, and the median over the pairs reported,
with quartiles. A step is forward, cross-entropy, backward and AdamW; the gated one also moves its gates. Memory is what
autograd holds for the backward pass, every storage counted once, parameters left out. Writes
`benchmarks/results/step-DEVICE.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
from autorep_fx.models_zoo import create, input_shape
from autorep_fx.training.recompute import recomputing

RESULTS = Path(__file__).parent / "results"
FORMS = ("eager", "compiled gates", "recomputed, eager", "recomputed, compiled gates")
Step = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile for both networks as well")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [measure(form, options) for form in FORMS]
    stated = {
        "model": options.model, "batch": options.batch, "precision": options.precision,
        "channels_last": options.channels_last, "compile": options.compile,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, "
        f"{os.cpu_count()} cores", "threads": torch.get_num_threads(), "torch": version("torch"),
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"step-{options.device}"
    stem.with_suffix(".json").write_text(json.dumps({"conditions": stated, "rows": rows}, indent=2) + "\n")
    stem.with_suffix(".md").write_text(_markdown(rows, stated))
    print(stem.with_suffix(".md").read_text())


def measure(form: str, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of one form of the gates."""
    torch.manual_seed(0)
    shape = input_shape(options.model)
    x, y = torch.randn(options.batch, *shape), torch.randint(0, 10, (options.batch,))
    model = create(options.model)
    gated = autorep_fx.prepare(model, "2.6%", example_inputs=x[:2], config={"verification": "off"})
    generator = torch.Generator().manual_seed(0)
    for gate in gated.gates.values():
        gate.kept.copy_(torch.rand(gate.kept.shape, generator=generator) < 0.026)
    for gate in gated.gates.values():
        gate.compiled = "compiled" in form
    with recomputing(gated.network, wanted="recomputed" in form):
        return _compared(form, model, gated, x, y, options)


def _compared(
    form: str, model: nn.Module, gated: autorep_fx.GatedModel, x: Tensor, y: Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    """Memory, and times of alternating steps."""
    (plain, plain_step), (ours, gated_step) = (_step(network, x, y, options) for network in (model, gated))
    memory = [_saved_bytes(forward, network) for forward, network in ((plain, model), (ours, gated))]
    begin = time.perf_counter()
    gated_step()
    first = time.perf_counter() - begin
    for step in (plain_step, gated_step) * 3:
        step()
    ratios, times = [], []
    for _ in range(options.pairs):
        pair = _seconds(plain_step, options.device), _seconds(gated_step, options.device)
        ratios.append(pair[1] / pair[0])
        times.append(pair)
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "form": form, "pairs": len(ratios), "ratio": statistics.median(ratios), "quartiles": [low, high],
        "plain_ms": 1e3 * statistics.median(t for t, _ in times),
        "gated_ms": 1e3 * statistics.median(t for _, t in times),
        "plain_mb": memory[0] / 1e6, "gated_mb": memory[1] / 1e6, "memory_ratio": memory[1] / memory[0],
        "first_step_s": first,
    }  # fmt: skip


def _step(network: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> tuple[Step, Step]:
    """Forward pass, and whole step, of a network in training."""
    network = network.to(options.device).train()
    x, y = x.to(options.device), y.to(options.device)
    if options.channels_last:
        network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    call = torch.compile(network) if options.compile else network

    def forward() -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            return F.cross_entropy(call(x), y)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        optimizer.step()
        if isinstance(network, autorep_fx.GatedModel):
            network.step(1.0)
        return loss.detach()

    return forward, step


def _saved_bytes(forward: Step, network: nn.Module) -> int:
    """Bytes that autograd holds at the end of the forward pass."""
    own = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = max(held.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    total = sum(held.values())
    loss.backward()
    return total


def _seconds(step: Step, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _markdown(rows: list[dict[str, Any]], conditions: dict[str, Any]) -> str:
    lines = [
        "# Training step, gated over plain",
        "",
        "`benchmarks/step.py`, " + ", ".join(f"{key} {value}" for key, value in conditions.items()) + ".",
        "",
        "| form | time, ratio (quartiles) | plain, ms | gated, ms | saved, ratio | plain, MB | gated, MB | n |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['form']} | {r['ratio']:.2f} ({r['quartiles'][0]:.2f}–{r['quartiles'][1]:.2f}) | {r['plain_ms']:.0f} | "
        f"{r['gated_ms']:.0f} | {r['memory_ratio']:.2f} | {r['plain_mb']:.0f} | {r['gated_mb']:.0f} | {r['pairs']} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
