"""The demo: a small ReLU network on the real digits, compiled to three budgets and run through onnxruntime."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from autorep_fx import models_zoo
from autorep_fx.api import transform
from autorep_fx.budget import Budget
from autorep_fx.compiled import Compiled
from autorep_fx.config import ModelConfig, PipelineConfig
from autorep_fx.cost import count_comparisons
from autorep_fx.files import atomic_path, output_directory
from autorep_fx.models_zoo.data import Batches, Split, digits, random_shift
from autorep_fx.pipeline import run_pipeline
from autorep_fx.runtime.session import Session
from autorep_fx.training.history import Callback

__all__ = ["BUDGETS", "DemoRow", "run_demo", "train_digits"]

BUDGETS = ("5%", "1%", "0")
_EPOCHS = 40


@dataclass(frozen=True)
class DemoRow:
    """One model of the demo.

    Attributes:
        name: ``ReLU`` or the budget.
        before: Nominal comparisons of the ReLU model for one sample.
        after: Nominal comparisons in the ONNX file, for one sample.
        accuracy_torch: Accuracy on the test part in torch; 0 to 1.
        accuracy_onnx: The same in onnxruntime.
        seconds: Wall time to train or compile, export and report.
    """

    name: str
    before: int
    after: int
    accuracy_torch: float
    accuracy_onnx: float
    seconds: float


def train_digits(
    model: nn.Module, data: Batches, *, epochs: int = _EPOCHS, seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:  # fmt: skip
    """Train with AdamW 3e-3, weight decay 1e-2, and a cosine to 0; returns the model in eval mode.

    Args:
        model: The network, trained in place.
        data: Training batches.
        epochs: Epochs.
        seed: Seed of anything random in the network.
        on_step: Called with steps done and steps in total.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    total = epochs * len(data)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    model.train()
    done = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(epochs):
            for x, y in data:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
                done += 1
                on_step(done, total)
    return model.eval()


def run_demo(
    out_dir: Path | str, *, seed: int = 0, on_step: Callable[[int, int], None] = lambda done, total: None,
    callbacks: Callable[[str], tuple[Callback, ...]] = lambda budget: (),
) -> list[DemoRow]:  # fmt: skip
    """Train, compile at 5 %, 1 % and 0, and measure each on the test part, which nothing else touches.

    Args:
        out_dir: Folder for the results: the ReLU model's weights and ONNX file, and one folder per budget.
        seed: Seed of split, weights and training.
        on_step: Called with steps done and steps in total of the ReLU model's training.
        callbacks: Callbacks for the training at a budget.

    Raises:
        OutputError: The folder cannot be written.
    """
    target = output_directory(out_dir)
    with _one_thread():
        return _run(target, seed, on_step, callbacks)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: for tensors as small as these, more of them wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(
    target: Path, seed: int, on_step: Callable[[int, int], None], callbacks: Callable[[str], tuple[Callback, ...]]
) -> list[DemoRow]:
    data = digits(seed)
    start = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models_zoo.create("digits_resnet")
    train_digits(model, Batches(data.train, 64, seed=seed, augment=random_shift(1)), seed=seed, on_step=on_step)
    checkpoint = target / "relu" / "weights.safetensors"
    output_directory(checkpoint.parent)
    with atomic_path(checkpoint) as temporary:
        save_file(model.state_dict(), temporary)
    # With everything kept, compiling is the identity: this is the ReLU model, exported by the same path.
    relu = transform(model, "100%", example_inputs=data.train.x[:64], seed=seed)
    relu.export(target / "relu" / "model.onnx")
    rows = [_measure("ReLU", relu, target / "relu", data.test, start)]
    for budget in BUDGETS:
        start = time.perf_counter()
        config = PipelineConfig(
            model=ModelConfig(zoo="digits_resnet", checkpoint=checkpoint), budget=Budget.parse(budget), seed=seed,
            device="cpu",
        )  # fmt: skip
        folder = target / f"budget-{budget.removesuffix('%')}"
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of a demo that was interrupted
        compiled = run_pipeline(config, folder, callbacks=callbacks(budget))
        rows.append(_measure(budget, compiled, folder, data.test, start))
    return rows


def _measure(name: str, compiled: Compiled, folder: Path, test: Split, start: float) -> DemoRow:
    seconds = time.perf_counter() - start
    with torch.no_grad():
        in_torch = compiled.module(test.x).argmax(1).numpy()
    session = Session(folder / "model.onnx", device="cpu")
    in_onnx = np.asarray(session(test.x.numpy())).argmax(1)
    truth = test.y.numpy()
    return DemoRow(
        name, compiled.original_comparisons, count_comparisons(folder / "model.onnx"),
        float((in_torch == truth).mean()), float((in_onnx == truth).mean()), seconds,
    )  # fmt: skip
