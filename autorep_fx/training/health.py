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
    if bad is None:
        return
    good = latest(folder)
    raise NonFiniteError(
        f"The loss is {bad:.3g} at {when}.",
        received=worst_site(model, objective, inputs),
        fix="Lower training.lr or polynomials.c2_bound, or set the named site's degree to 1."
        + (f" The last good checkpoint is {good}." if good else ""),
    )


def exploded(loss: float, first: float) -> bool:
    """Whether a loss is NaN, infinite, or ten thousand times above where it began."""
    return not math.isfinite(loss) or loss > _EXPLOSION * (1 + abs(first))


@torch.no_grad()
def worst_site(model: nn.Module, objective: Objective, inputs: ExampleInputs) -> str:
    """The first site whose input is not finite or far outside its calibrated range, or else the furthest outside.

    Where all are inside of theirs, it says that the model is not to blame.

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
    try:
        objective.run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "no site was calibrated"
    first = next((item for item in found if item[0] > _FAR), None)  # in the order of execution
    furthest = first or max(found, key=lambda item: item[0])
    if not furthest[0]:
        return "no site is outside of its calibrated range on this batch: look at the loss function and the targets"
    return "the site whose range exploded: " + furthest[1]
