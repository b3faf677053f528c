"""Whether data reach beyond the inputs that polynomials were fitted and measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.training.batches import split_batch
from autorep_fx.training.gated_model import GatedModel

__all__ = ["beyond_range"]

# How far beyond, in widths of the range. A little is what any new sample does.
_MARGIN = 0.5
_BATCHES = 16


@torch.no_grad()
def beyond_range(gated: GatedModel, ranges: Mapping[str, tuple[float, float]], data: Iterable[Any]) -> tuple[str, ...]:
    """A warning if inputs of replaced elements leave the calibrated range by half its width; else nothing.

    Args:
        gated: The projected model.
        ranges: Site name → smallest and largest calibrated input.
        data: Batches; the first 16 are looked at.
    """
    found: dict[str, tuple[float, float]] = {}

    def record(gate: GatedActivation, args: tuple[Any, ...], _: Any) -> None:
        low, high = found.get(gate.site.name, (float("inf"), -float("inf")))
        found[gate.site.name] = min(low, float(args[0].min())), max(high, float(args[0].max()))

    watched = [g for g in gated.gates.values() if not bool(g.kept.all()) and not isinstance(g, GatedPool)]
    handles = [gate.register_forward_hook(record) for gate in watched]
    was_training = gated.training
    try:
        gated.eval()
        for _, batch in zip(range(_BATCHES), data, strict=False):
            split_batch(batch)[0].to(device=gated.phase.device).call(gated)
    finally:
        gated.train(was_training)
        for handle in handles:
            handle.remove()
    far = sorted(((_excess(ranges[name], seen), name) for name, seen in found.items() if name in ranges), reverse=True)
    far = [(excess, name) for excess, name in far if excess > _MARGIN]
    if not far:
        return ()
    name = far[0][1]
    (low, high), (least, most) = ranges[name], found[name]
    where = f"on the validation data the inputs of {len(far)} of {len(found)} sites leave the calibrated range"
    worst = f"worst: {name}, calibrated {low:.3g} to {high:.3g}, seen {least:.3g} to {most:.3g}"
    return (f"{where} by more than half its width ({worst}); calibrate on more samples",)


def _excess(calibrated: tuple[float, float], seen: tuple[float, float]) -> float:
    """By how many widths of the calibrated range the seen one goes beyond it."""
    low, high = calibrated
    return max(low - seen[0], seen[1] - high, 0.0) / max(high - low, 1e-30)
