"""Calibrate: fit the polynomials in order, each on the input it really gets when all sites before it are replaced."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autorep_fx.errors import NonFiniteError
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.inputs import ExampleInputs, all_finite
from autorep_fx.passes.insert_gates import gates_of

__all__ = ["CalibratePass"]

# Unseen inputs that every fit is tried on: as many noise samples, and as many samples stretched about their mean.
_PROBES = 8
_STRETCH = 1.5


class CalibratePass(Pass):
    """Fits every polynomial in one sweep over the graph.

    1. Each gate records its input, fits its polynomial, and passes on the *polynomial's* output, so that the next one
       is fitted with the prefix replaced.
    2. Probes, which no fit sees, run along: stretched samples and, if asked, noise of their mean and spread. Where a
       quadratic overshoots the activation on them (or on the samples) many times over, the errors of a deep network
       would multiply from site to site: the site falls back to degree 1, and :attr:`fallbacks` says so.

    Args:
        inputs: Samples to calibrate on; what they are is for the caller to record.
        noise: Whether noise is a probe too. It makes up for samples that are few. Where data are there it is left out:
            noise is not what such a model meets. On the digits that made no difference on two of three seeds.

    Attributes:
        fallbacks: Site name → what was done and why.
    """

    def __init__(self, inputs: ExampleInputs, *, noise: bool = True) -> None:
        self.inputs = inputs
        self.noise = noise
        self.fallbacks: dict[str, str] = {}

    def call(self, module: fx.GraphModule) -> PassResult:
        """Fit, and require finite outputs.

        Raises:
            NonFiniteError: Outputs are NaN or infinite although every site that overshoots is linear.
        """
        gates = gates_of(module)
        for gate in gates.values():
            gate.mode, gate.samples, gate.linearised = "calibrate", self.inputs.size, False
        try:
            with torch.no_grad():
                output = _with_probes(self.inputs, noise=self.noise).call(module)
        finally:
            for gate in gates.values():
                gate.mode = "run"
        if not all_finite(output):
            raise NonFiniteError(
                "The outputs are not finite although every polynomial that overshoots is linear.",
                received="NaN or infinity in the outputs of the calibration samples or of slightly wider ones",
                fix="Check the range of the inputs, or keep the first sites with sites: {NAME: {mode: ignore}}.",
            )
        for name, gate in gates.items():
            if gate.linearised:
                self.fallbacks[name] = "fitted with degree 1: a quadratic overshoots on inputs a little off the samples"
        return PassResult(module, modified=True)


def _with_probes(inputs: ExampleInputs, *, noise: bool) -> ExampleInputs:
    """The samples followed by the probes, in one batch."""
    generator, count, size = torch.Generator().manual_seed(0), min(_PROBES, inputs.size), inputs.size

    def extend(value: object) -> object:
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != size:
            return value
        if not value.is_floating_point():
            return torch.cat([value, *[value[:count]] * (1 + noise)])
        mean, std = value.mean(), value.std(correction=0)
        wide = (value[:count] - mean) * _STRETCH + mean
        if not noise:
            return torch.cat([value, wide])
        return torch.cat([value, wide, torch.randn(wide.shape, generator=generator).to(value) * std + mean])

    args, kwargs = pytree.tree_map(extend, (inputs.args, dict(inputs.kwargs)))
    return ExampleInputs(args, kwargs)
