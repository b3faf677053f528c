"""Where the polynomials of a gated model start: fits in order, or fits where the training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

from autorep_fx.passes.calibrate import CalibratePass
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.nested import all_finite

if TYPE_CHECKING:
    from autorep_fx.training.gated_model import GatedModel

__all__ = ["fit_polynomials"]

# Largest |output| with everything replaced over that with everything kept, from which a training finds its way back.
# Measured in training mode on fits of this kind: 7 for a trained network of 7 sites, 7e3 and 2e7 for untrained
# ResNet-18 and ResNet-20, which diverged. In eval mode nothing holds the values back, and running statistics follow
# within some dozens of steps: 1.5e3 for the trained network; NaN or 2e32 for deep ones with norms of two samples, which
# give 10 to 23 in training mode, and were still infinite in eval mode after a short training.
_GROWTH, _GROWTH_EVAL = 100.0, 1e6


def fit_polynomials(gated: GatedModel, inputs: ExampleInputs, *, given: bool) -> dict[str, str]:
    """Fit all polynomials as ``calibration.prefix`` says.

    Args:
        gated: The model, in eval mode, with everything kept.
        inputs: Samples to fit on.
        given: Whether they are example inputs and no training follows.

    Returns:
        Site name → what was done there, and why.

    Raises:
        NonFiniteError: No polynomials give finite outputs.
    """
    prefix = gated.config.calibration.prefix
    room = gated.pots()[-1].allowed
    if prefix != "replaced" and not given and gated.method.trains_scores:
        in_place = CalibratePass(inputs, noise=given, room=room, in_place=True)
        in_place(gated.network)
        if prefix == "kept" or (
            _growth(gated, inputs, training=True) <= _GROWTH and _growth(gated, inputs, training=False) <= _GROWTH_EVAL
        ):
            return in_place.fallbacks
    in_order = CalibratePass(inputs, noise=given, room=room)
    in_order(gated.network)
    return in_order.fallbacks


@torch.no_grad()
def _growth(gated: GatedModel, inputs: ExampleInputs, *, training: bool) -> float:
    """Largest |output| with everything replaced over that with everything kept; infinite where that is not finite."""
    buffers = {name: value.clone() for name, value in gated.named_buffers()}
    gated.train(training)
    try:
        with torch.random.fork_rng(devices=[]):  # dropout
            kept = _largest(inputs.call(gated.network))
            gated.set_gates_to("replaced")
            replaced = _largest(inputs.call(gated.network))
    finally:
        for name, value in gated.named_buffers():
            value.copy_(buffers[name])  # the states of the gates, and the running statistics of norms
        gated.eval()
    return replaced / max(kept, 1e-12) if replaced == replaced else float("inf")


def _largest(output: object) -> float:
    """NaN where an output is not finite."""
    if not all_finite(output):
        return float("nan")
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.numel()]
    return max((float(leaf.abs().max()) for leaf in leaves), default=0.0)
