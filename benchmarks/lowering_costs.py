"""What the forms of a gate cost in onnxruntime: the table that `passes/lower_gates.py` chooses by.

    python benchmarks/lowering_costs.py

A chain of 3×3 convolutions with 64 channels on 32×32 images is run with each form in place of its ReLU, in turns with
the ReLU chain, on one thread, at batches 1 and 32. The cost of a form is the median of the differences of the process
time, per element of the tensor: what it costs more than a ReLU that is part of the convolution. Prints the constants
and the conditions to be put into `passes/form_costs.py`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

CHANNELS, SIDE, LAYERS = 64, 32, 4
Form = Callable[[Tensor], Tensor]


def slices(runs: int) -> Form:
    """Stretches of channels by turns activated and squared."""

    def form(x: Tensor) -> Tensor:
        parts = x.split(CHANNELS // runs, 1)
        return torch.cat([torch.relu(part) if at % 2 else part * part for at, part in enumerate(parts)], 1)

    return form


def gather(x: Tensor) -> Tensor:
    """Every second channel kept: gathered, joined, and put back in order."""
    order = torch.cat([torch.arange(0, CHANNELS, 2), torch.arange(1, CHANNELS, 2)])
    kept, rest = x.index_select(1, order[: CHANNELS // 2]), x.index_select(1, order[CHANNELS // 2 :])
    return torch.cat([torch.relu(kept), rest * rest], 1).index_select(1, torch.argsort(order))


def scatter(share: float) -> Form:
    """Elements kept at random, written over the squares."""
    size = CHANNELS * SIDE * SIDE
    index = torch.randperm(size, generator=torch.Generator().manual_seed(0))[: int(share * size)].sort().values

    def form(x: Tensor) -> Tensor:
        wide = index.expand(x.shape[0], len(index))
        kept = torch.relu(x.flatten(1).gather(1, wide))
        return (x * x).flatten(1).scatter(1, wide, kept).unflatten(1, (CHANNELS, SIDE, SIDE))

    return form


def permute(share: float) -> Form:
    """The same elements gathered, and the others too; joined, and put back in order."""
    size = CHANNELS * SIDE * SIDE
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    count = int(share * size)
    kept, rest = order[:count].sort().values, order[count:].sort().values
    inverse = torch.argsort(torch.cat([kept, rest]))

    def form(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        one, other = torch.relu(flat.index_select(1, kept)), flat.index_select(1, rest)
        joined = torch.cat([one, other * other], 1).index_select(1, inverse)
        return joined.unflatten(1, (CHANNELS, SIDE, SIDE))

    return form


FORMS: dict[str, Form] = {
    "relu": torch.relu, "square": lambda x: x * x,
    **{f"slices, {runs} runs": slices(runs) for runs in (2, 4, 8, 16, 32)}, "gather": gather,
    **{f"{form.__name__}, {share:.1%}": form(share) for form in (scatter, permute) for share in (0.01, 0.03, 0.1, 0.3)},
}  # fmt: skip


class Chain(nn.Module):
    """Convolutions with a form behind each."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.form(conv(x))
        return x


def session(form: Form, folder: Path) -> onnxruntime.InferenceSession:
    """The chain with a form, in onnxruntime on one thread."""
    path = folder / "m.onnx"
    x = torch.randn(2, CHANNELS, SIDE, SIDE)
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        Chain(form).eval(), (x,), path, dynamo=True, external_data=False, dynamic_shapes=({0: batch},), verbose=False
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sessions = {name: session(form, Path(folder)) for name, form in FORMS.items()}
    print(f"{platform.machine()}, 1 thread, onnxruntime {version('onnxruntime-gpu')}, {options.repeats} repeats")
    for batch in (1, 32):
        x = {"x": np.random.default_rng(0).standard_normal((batch, CHANNELS, SIDE, SIDE)).astype(np.float32)}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(options.repeats):
            for name, found in sessions.items():
                start = time.process_time()
                found.run(None, x)
                times[name].append(time.process_time() - start)
        elements = batch * CHANNELS * SIDE * SIDE * LAYERS
        for name, values in times.items():
            more = statistics.median(a - b for a, b in zip(values, times["relu"], strict=True))
            print(f"batch {batch:2}  {name:18} {more / elements * 1e9:6.3f} ns per element")


if __name__ == "__main__":
    main()
