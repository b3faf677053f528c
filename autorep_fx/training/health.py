"""Whether training is still sane, and if not, which site went first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autorep_fx.errors import NonFiniteError
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.checkpoint import latest
from autorep_fx.training.collective import any_of
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.objective import Objective
from autorep_fx.training.record import RunRecord

__all__ = ["LOOK_EVERY", "check_loss", "exploded", "worst_site"]

#: Steps between two looks at the loss on a GPU, where every look waits for it.
LOOK_EVERY = 10

# A loss so many times above 1 + the first one is no training any more.
_EXPLOSION = 1e4

# A site so many times its calibrated range outside of it is where it began: those after it only follow.
_FAR = 10.0


def check_loss(
    record: RunRecord, model: nn.Module, objective: Objective, when: str, folder: Path | None, loss: Tensor,
    inputs: ExampleInputs,
) -> None:  # fmt: skip
    """Look at a loss, and at those since the last look, before the weights move.

    Args:
        record: Record of the run.
        model: What is trained.
        objective: Says how it is called.
        when: Phase and progress, for the message.
        folder: Folder of the checkpoints.
        loss: Loss of the batch.
        inputs: The batch.

    Raises:
        NonFiniteError: One is NaN, infinite or explodes; with the site whose range exploded, and the last good state.
    """
    values = [float(value) for value in (*record.losses[-LOOK_EVERY:], loss)]
    if math.isnan(record.first_loss):
        record.first_loss = values[0]
    bad = next((value for value in values if exploded(value, record.first_loss)), None)
    if not any_of(bad is not None, loss.device):  # all processes stop together: none waits for another
        return
    good = latest(folder)
    raise NonFiniteError(
        f"The loss is {values[-1] if bad is None else bad:.3g} at {when}"
        + (", and not finite or far larger in another process." if bad is None else "."),
        received=worst_site(model, objective, inputs),
        fix="Start again in another folder with a lower training.lr or polynomials.c2_bound, or the named site's "
        "degree at 1; where no site is far off, look at the loss function and the targets."
        + (f" The last good checkpoint is {good}." if good else ""),
    )


def exploded(loss: float, first: float) -> bool:
    """Whether a loss is NaN, infinite, or ten thousand times above where it began."""
    return not math.isfinite(loss) or loss > _EXPLOSION * (1 + abs(first))


@torch.no_grad()
def worst_site(model: nn.Module, objective: Objective, inputs: ExampleInputs) -> str:
    """The first site whose input is not finite or far outside its calibrated range; where none is, it says so.

    Args:
        model: A gated model; any other has no sites.
        objective: Says how it is called.
        inputs: The batch on which the loss went wrong.
    """
    if not isinstance(model, GatedModel):
        return "the model has no sites to look at"
    found: list[tuple[float, str]] = []

    def record(gate: GatedActivation, args: tuple[Any, ...], _: Tensor) -> None:
        x = args[0]
        low, high = gate.input_range.tolist()
        if not bool(torch.isfinite(x).all()):
            found.append((math.inf, f"{gate.site.name}, whose input is not finite"))
        elif math.isfinite(low) and math.isfinite(high):
            least, most = float(x.min()), float(x.max())
            excess = max(low - least, most - high, 0.0) / max(high - low, 1e-30)
            text = f"{gate.site.name}, calibrated on {low:.3g} to {high:.3g}, now {least:.3g} to {most:.3g}"
            found.append((excess, text))

    handles = [gate.register_forward_hook(record) for gate in model.gates.values()]
    for gate in model.gates.values():
        gate.mode = "run"  # fits are not to follow what went wrong
    try:
        objective.run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "no site was calibrated"
    first = next((item for item in found if item[0] > _FAR), None)  # in the order of execution
    if first is None:
        return "no site is far outside of its calibrated range; the furthest: " + max(found, key=lambda one: one[0])[1]
    return "the site whose range exploded: " + first[1]
