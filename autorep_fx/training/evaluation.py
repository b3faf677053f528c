"""The metric of a module on batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.training.batches import split_batch
from autorep_fx.training.objective import Objective

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    module: nn.Module, data: Iterable[Any], objective: Objective, *, device: torch.device | str = "cpu"
) -> float | None:
    """Metric in eval mode, weighted by batch size; None where there is none. The module's mode is restored."""
    was_training = module.training
    module.eval()
    try:
        return _mean_metric(module, data, objective, device)
    finally:
        module.train(was_training)


def _mean_metric(
    module: nn.Module, data: Iterable[Any], objective: Objective, device: torch.device | str
) -> float | None:
    total, samples = 0.0, 0
    for batch in data:
        inputs, targets = split_batch(batch)
        inputs = inputs.to(device=device)
        targets = pytree.tree_map_only(Tensor, lambda t: t.to(device), targets)
        value = objective.measure(objective.run(module, inputs), targets)
        if value is None:
            return None
        total, samples = total + value * inputs.size, samples + inputs.size
    return total / samples if samples else None
