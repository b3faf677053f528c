"""A small compiled model for the tests of secure execution."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import autorep_fx


class SmallNet(nn.Module):
    """Convolutions with two gateable sites, a max pool, a mean and a linear head, on 1×6×6 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.relu, self.pool, self.head = nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 6, 6) → (N, 3)."""
        x = self.pool(self.relu(self.conv1(x)))
        return self.head(self.relu(self.conv2(x)).mean((2, 3)))


def compile_small(path: Path, granularity: str, kept: float = 0.4) -> Path:
    """Export :class:`SmallNet` with a share of its gates kept."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(8, 1, 6, 6)
        settings = {"gates": {"granularity": granularity}}
        gated = autorep_fx.prepare(SmallNet().eval(), f"{kept:.0%}", example_inputs=x, config=settings)
        autorep_fx.calibrate(gated, [(x, torch.zeros(8, dtype=torch.long))])
        autorep_fx.lower(autorep_fx.project(gated)).export(path)
    return path
