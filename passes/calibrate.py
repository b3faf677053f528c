"""Calibrate: fit the polynomials in order, each on the input it really gets when all sites before it are replaced."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from autorep_fx.errors import NonFiniteError
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.insert_gates import gates_of
from autorep_fx.passes.nested import all_finite

__all__ = ["CalibratePass"]

# Unseen inputs that every fit is tried on: as many noise samples, and as many samples stretched about their mean.
_PROBES = 8
_STRETCH = 1.5
# Largest |polynomial| over largest |activation|. A quadratic fit to N(0, 1) passes it at 17 standard deviations.
_OVERSHOOT = 4.0
# Share of what is left of the budget that a site may be kept from.
_SHARE = 0.25


class CalibratePass(Pass):
    """Fits every polynomial in one sweep over the graph.

    1. Each gate records its input, fits its polynomial, and passes on the *polynomial's* output, so that the next one
       is fitted with the prefix replaced.
    2. Probes, which no fit sees, run along: stretched samples and, if asked, noise of their mean and spread. Where a
       quadratic overshoots the activation on them (or on the samples) many times over, the errors of a deep network
       would multiply from site to site: the site falls back to degree 1.
    3. Where degree 1 overshoots too (a sigmoid that gates its own input far out), the site is kept for good, if it
       costs at most a quarter of what the budget still allows.

    Args:
        inputs: Samples to calibrate on; what they are is for the caller to record.
        noise: Whether noise is a probe too. It makes up for samples that are few. Where data are there it is left out:
            noise is not what such a model meets. On the digits that made no difference on two of three seeds.
        room: Nominal comparisons for one sample that sites may be kept from.
        in_place: Fit each polynomial on the input that its site has while all are kept that can be, and leave out rules
            2 and 3 there: for a training that begins so, and whose fits follow what is replaced.

    Attributes:
        fallbacks: Site name → what was done and why.
    """

    def __init__(self, inputs: ExampleInputs, *, noise: bool = True, room: int = 0, in_place: bool = False) -> None:
        self.inputs = inputs
        self.noise = noise
        self.room = room
        self.in_place = in_place
        self.fallbacks: dict[str, str] = {}

    def call(self, module: fx.GraphModule) -> PassResult:
        """Fit, and require finite outputs.

        Raises:
            NonFiniteError: Outputs are NaN or infinite although every site that overshoots is linear or kept.
        """
        gates = gates_of(module)
        for gate in gates.values():
            gate.fall_back(None)
            gate.handler = self._calibrate
        try:
            with torch.no_grad():
                output = _with_probes(self.inputs, noise=self.noise).call(module)
        finally:
            for gate in gates.values():
                gate.handler = None
        if not all_finite(output):
            raise NonFiniteError(
                "The outputs are not finite although every polynomial that overshoots is linear.",
                received="NaN or infinity in the outputs of the calibration samples or of slightly wider ones",
                fix="Check the range of the inputs, ask for a larger budget, or keep single sites with "
                "sites: {NAME: {mode: keep}}." + self._worst(),
            )
        return PassResult(module, modified=True)

    def _calibrate(self, gate: GatedActivation, x: Tensor) -> Tensor:
        """Fit to the samples among the rows of ``x``, and give what the next site is fitted on."""
        gate.observe(x[: self.inputs.size])
        gate.refit()
        # Rule 1.
        if gate.pinned == "kept" or (self.in_place and gate.pinned is None):
            return gate.function(x)
        result = gate.polynomial(x)
        limit = _OVERSHOOT * float(gate.function(x).abs().max())
        if _within(result, limit):
            return result
        # Rule 2.
        if gate.degree > 1:
            gate.fall_back("linear")
            gate.refit()
            self.fallbacks[gate.site.name] = "fitted with degree 1: a quadratic overshoots a little off the samples"
            result = gate.polynomial(x)
        # Rule 3.
        free = gate.pinned is None and gate.own_allowed is None
        if not _within(result, limit) and free and gate.site.comparisons <= _SHARE * self.room:
            gate.fall_back("kept")
            self.room -= gate.site.comparisons
            self.fallbacks[gate.site.name] = "kept entirely: any polynomial overshoots a little off the samples"
            return gate.function(x)
        return result

    def _worst(self) -> str:
        names = list(self.fallbacks)
        return f" The first that overshoot: {', '.join(names[:5])}." if names else ""


def _within(values: Tensor, limit: float) -> bool:
    return float(values.abs().max()) <= limit  # False for NaN too


def _with_probes(inputs: ExampleInputs, *, noise: bool) -> ExampleInputs:
    """The samples followed by the probes, in one batch."""
    if inputs.fixed_batch:  # there is no room for any
        return inputs
    generator, count = torch.Generator().manual_seed(0), min(_PROBES, inputs.size)

    def extend(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return torch.cat([value, *[value[:count]] * (1 + noise)])
        mean, std = value.mean(), value.std(correction=0)
        wide = (value[:count] - mean) * _STRETCH + mean
        if not noise:
            return torch.cat([value, wide])
        return torch.cat([value, wide, torch.randn(wide.shape, generator=generator).to(value) * std + mean])

    return inputs.map(extend)
