"""Baselines that choose once, before any training: whole layers by sensitivity, at random, or by magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autorep_fx.gates import GatedActivation
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.project_budget import ProjectBudgetPass
from autorep_fx.training.methods.base import Method
from autorep_fx.training.methods.scores import free_gates, measured_errors, set_by_rank

if TYPE_CHECKING:
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["Layerwise", "Magnitude", "Random"]


class _Fixed(Method):
    """Projects at the start; the gate training trains weights and polynomials alone."""

    trains_scores = False

    def start(self, gated: GatedModel, inputs: ExampleInputs, seed: int) -> None:
        """Start the scores, and keep what they say within the budget."""
        self._score(gated, inputs, seed)
        ProjectBudgetPass(gated.allowance.allowed)(gated.network)

    def restart(self, gated: GatedModel) -> None:
        """Keep fewer of the same."""
        ProjectBudgetPass(gated.allowance.allowed)(gated.network)

    def _score(self, gated: GatedModel, inputs: ExampleInputs, seed: int) -> None:
        super().start(gated, inputs, seed)


class Random(_Fixed):
    """Units at random, as the scores from U(0, 1) fall."""


class Layerwise(_Fixed):
    """Whole sites, by estimated output error per comparison, as DELPHI and DeepReDuce choose layers.

    All units of a site rank above all units of the next one, so that at most one site is kept in part.
    """

    def _score(self, gated: GatedModel, inputs: ExampleInputs, seed: int) -> None:
        gates, errors = free_gates(gated), measured_errors(gated, inputs, seed)
        per_comparison = {name: float(errors[name].sum()) / gate.site.comparisons for name, gate in gates.items()}
        ranked = sorted(gates, key=lambda name: per_comparison[name])
        set_by_rank(gates, {name: ranked.index(name) + 0.5 * _share_of_largest(errors[name]) for name in gates})


class Magnitude(_Fixed):
    """Units whose own output replacement changes most: E|a(x) − p(x)| per comparison, whatever comes after."""

    @torch.no_grad()
    def _score(self, gated: GatedModel, inputs: ExampleInputs, seed: int) -> None:
        found: dict[str, Tensor] = {}

        def record(gate: GatedActivation, args: tuple[Any, ...], _: Tensor) -> None:
            change = (gate.function(args[0]) - gate.polynomial(args[0])).abs().mean(0)
            found[gate.site.name] = change.sum_to_size(gate.kept.shape) / gate.unit_cost

        gates = free_gates(gated)
        handles = [gate.register_forward_hook(record) for gate in gates.values()]
        try:
            inputs.call(gated.network)
        finally:
            for handle in handles:
                handle.remove()
        set_by_rank(gates, found)


def _share_of_largest(errors: Tensor) -> Tensor:
    return errors / errors.max().clamp(min=torch.finfo(errors.dtype).tiny)
