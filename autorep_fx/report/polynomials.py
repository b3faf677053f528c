"""Pick a few channels of a gated model and measure what their polynomials meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autorep_fx.errors import NonFiniteError
from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.report.data import ReportPolynomial
from autorep_fx.training.gated_model import GatedModel

__all__ = ["measure_polynomials"]

_BINS = 40


def measure_polynomials(model: GatedModel, inputs: ExampleInputs, *, most: int = 6) -> tuple[ReportPolynomial, ...]:
    """Histograms of the input of the widest channel at up to ``most`` sites, evenly spaced over the network.

    Args:
        model: Projected gated model, in eval mode.
        inputs: Samples to measure on.
        most: Sites to measure.
    """
    replaced = [g for g in model.gates.values() if not bool(g.kept.all()) and not isinstance(g, GatedPool)]
    if not replaced:
        return ()
    chosen = [replaced[i] for i in np.unique(np.linspace(0, len(replaced) - 1, min(most, len(replaced))).astype(int))]
    found: list[ReportPolynomial] = []

    def record(gate: GatedActivation, args: tuple[Any, ...], _: Tensor) -> None:
        found.append(_measure(gate, args[0].detach()))

    handles = [gate.register_forward_hook(record) for gate in chosen]
    try:
        with torch.no_grad():
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


def _measure(gate: GatedActivation, x: Tensor) -> ReportPolynomial:
    channels = x.transpose(0, gate.site.channel_axis + 1).flatten(1).double().cpu()
    if not bool(torch.isfinite(channels).all()):
        raise NonFiniteError(
            f"What reaches {gate.site.name} is not finite: polynomials before it multiply their errors.",
            received="NaN or infinity on the calibration samples, with the gates as they were projected",
            fix="Train longer or with a lower learning rate, fit in order (calibration: {prefix: replaced}), keep "
            "more, or use degree 1 at the sites before it.",
        )
    channel = int(channels.std(1).argmax())
    counts, edges = np.histogram(channels[channel].numpy(), bins=_BINS)
    activation = gate.function(torch.from_numpy(edges), channel).numpy()
    coefficients = gate.coefficients.detach().double().cpu().numpy()[:, channel]
    return ReportPolynomial(gate.site.name, gate.site.kind, channel, coefficients, edges, counts, activation)
