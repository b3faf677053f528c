"""What torchrun runs for test_two_processes.py: ``two_processes.py CASE… FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.config import BaseConfig, ExecutionConfig
from autorep_fx.errors import AutorepError
from autorep_fx.training.base import train_base
from autorep_fx.training.objective import Objective

CONFIG: dict[str, Any] = {
    "training": {"epochs": 2}, "finetune": {"epochs": 1}, "calibration": {"samples": 32},
    "polynomials": {"refresh_every": 2, "refresh_until": 0.9}, "outputs": {"onnx": False, "report": False},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"execution": {"accumulate": 2}, "finetune": {"epochs": 1, "optimizer": "sgd", "ema": 0.9}},
    "snl": {"training": {"epochs": 2, "method": "snl"}},
    "norm": {},
    "synchronised": {"execution": {"sync_norms": True}},
    "base": {},
}
FAILURES = ("nan", "single")


class Net(nn.Module):
    """Two convolutions and a linear head; with or without norms, one of them after the head's hidden layer."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.bn1, self.bn2 = (nn.BatchNorm2d(4) if norm else nn.Identity() for _ in range(2))
        self.hidden, self.head = nn.Linear(64, 6), nn.Linear(6, 4)
        self.bn3 = nn.BatchNorm1d(6, momentum=None) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(torch.relu(self.bn3(self.hidden(x.flatten(1)))))


def data(size: int = 7) -> list[tuple[Tensor, Tensor]]:
    """Batches that two processes cannot halve."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64) + 3,
            torch.randint(0, 4, (size,), generator=generator),
        )
        for _ in range(4)
    ]


def model(*, norm: bool) -> nn.Module:
    """The same weights every time, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(norm=norm).double()


def failure(case: str) -> dict[str, Any]:
    """What a case ends with, in each process: a loss that is NaN in the second alone, or a batch of one sample."""
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        bad = case == "nan" and calls == 3 and os.environ["RANK"] == "1"
        return nn.functional.cross_entropy(outputs, targets) * (float("nan") if bad else 1.0)

    batches = data() if case == "nan" else [*data(), *data(1)]
    try:
        autorep_fx.transform(model(norm=False), "10%", data=batches, loss=loss, config=CONFIG)
    except AutorepError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {}


def run(case: str) -> dict[str, Any]:
    """Digest and weights of a case."""
    if case in FAILURES:
        return failure(case)
    if case == "base":
        network = model(norm=True)
        config = BaseConfig(epochs=2, lr=0.01, ema=0.9)
        train_base(
            network, config, objective=Objective(), data=data(), execution=ExecutionConfig(sync_norms=True), seed=0
        )
        return {"digest": "", "weights": network.state_dict()}
    norm = case in ("norm", "synchronised")
    config = {**CONFIG, **CASES[case]}
    compiled = autorep_fx.transform(model(norm=norm), "10%", data=data(), val_data=data()[:2], config=config)
    plan = {
        f"{s.name}.{i}": torch.as_tensor(v) for s in compiled.plan.sites for i, v in enumerate((s.kept, s.coefficients))
    }
    return {"digest": compiled.plan.digest, "weights": dict(compiled.weights), "plan": plan}


def main(cases: list[str], folder: str) -> None:
    """Run the cases, and write what this process found."""
    torch.set_num_threads(1)
    found = {case: run(case) for case in cases}
    torch.save(found, Path(folder) / f"rank-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
