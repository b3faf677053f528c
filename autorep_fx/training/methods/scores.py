"""Where scores start: ranks of a measurement, noise, or ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.sensitivity import output_errors

if TYPE_CHECKING:
    from autorep_fx.gates import GatedActivation
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["free_gates", "measured_errors", "set_by_rank", "start_scores"]

# Samples on which output errors are estimated: a backward pass per draw holds all activations.
_SAMPLES = 64


def free_gates(gated: GatedModel) -> dict[str, GatedActivation]:
    """The gates that scores decide on, by site name."""
    return {name: gate for name, gate in gated.gates.items() if gate.pinned is None}


@torch.no_grad()
def start_scores(gated: GatedModel, inputs: ExampleInputs, seed: int, init: str) -> None:
    """Start the scores of all free gates, in (0, 1].

    Args:
        gated: The model, calibrated, with everything kept.
        inputs: Samples to measure on.
        seed: Of random signs or scores.
        init: ``sensitivity``: rank of the estimated output error per comparison; ``random``: U(0, 1); ``ones``.
    """
    if init == "sensitivity":
        gates = free_gates(gated)
        errors = measured_errors(gated, inputs, seed)
        set_by_rank(gates, {name: errors[name] / gate.unit_cost for name, gate in gates.items()})
        return
    generator = torch.Generator().manual_seed(seed)
    for gate in free_gates(gated).values():
        gate.score.copy_(torch.rand(gate.score.shape, generator=generator) if init == "random" else torch.tensor(1.0))


def measured_errors(gated: GatedModel, inputs: ExampleInputs, seed: int) -> dict[str, Tensor]:
    """Estimated squared change of the outputs per unit, by site name; see :mod:`autorep_fx.passes.sensitivity`."""
    generator = torch.Generator().manual_seed(seed)
    return output_errors(gated.network, inputs.resized(min(inputs.size, _SAMPLES)), generator=generator)


@torch.no_grad()
def set_by_rank(gates: Mapping[str, GatedActivation], values: Mapping[str, Tensor]) -> None:
    """Set the scores to the ranks of ``values`` among all units, scaled to (0, 1)."""
    if not gates:
        return
    parts = [values[name].flatten().double().cpu() for name in gates]
    flat = torch.cat(parts)
    ranks = torch.empty(len(flat), dtype=torch.float64)
    ranks[torch.argsort(flat, stable=True)] = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    for gate, part in zip(gates.values(), (ranks / (len(flat) + 1)).split([len(p) for p in parts]), strict=True):
        gate.score.copy_(part.view(gate.score.shape))
