"""``load``: a saved compiled model, with or without the model's class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autorep_fx.compiled import Compiled
from autorep_fx.config import TransformConfig
from autorep_fx.config_io import load_yaml, parse_config
from autorep_fx.cost.resolve import Allowance
from autorep_fx.errors import ModelFileError, PlanError
from autorep_fx.loading import load_weights
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.fingerprint import fingerprint
from autorep_fx.passes.graphs import sites_of
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.insert_gates import InsertGatesPass
from autorep_fx.plan import Plan, check_files
from autorep_fx.runtime.session import Session
from autorep_fx.stages import lower, select_sites
from autorep_fx.training.gated_model import GatedModel

__all__ = ["SavedModel", "load"]


class SavedModel:
    """A saved compiled model without the model's class: its plan, and its ONNX file in onnxruntime.

    Attributes:
        plan: The plan.
        session: The session; call the object itself to run it.
    """

    def __init__(self, folder: Path) -> None:
        self.plan = Plan.load(folder)
        check_files(folder)
        if not (folder / "model.onnx").is_file():
            raise ModelFileError(
                f"There is no model.onnx in {folder}.",
                fix="Pass the model as well: autorep_fx.load(folder, model, example_inputs=...).",
            )
        self.session = Session(folder / "model.onnx")

    @property
    def comparisons(self) -> int:
        """Nominal comparisons for one sample, by the plan."""
        return self.plan.comparisons

    def __repr__(self) -> str:
        return f"SavedModel({self.plan.original_comparisons:,} → {self.comparisons:,} comparisons, {self.session})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the ONNX file on NumPy arrays."""
        return self.session(*args, **kwargs)


def load(folder: Path | str, model: nn.Module | None = None, *, example_inputs: Any = None) -> Compiled | SavedModel:
    """Load what :meth:`Compiled.save` wrote.

    Args:
        folder: The folder.
        model: A model of the same class and configuration, with any weights. Without it the ONNX file is run.
        example_inputs: As for :func:`autorep_fx.transform`; by default zeros of the input shapes in the ONNX file.

    The training history and the metrics are in the saved report alone; a loaded model has none.

    Raises:
        PlanError: The plan is missing, damaged, of a newer format, or of another model; in the last case the missing,
            extra and renamed sites are listed.
        CheckpointError: The weights are missing, damaged, or of another model.
        ModelFileError: There is no ONNX file and no model was given.
    """
    folder = Path(folder)
    if model is None:
        return SavedModel(folder)
    plan = Plan.load(folder)
    check_files(folder)
    config = _settings(folder)
    given = _zeros(folder) if example_inputs is None else example_inputs
    inputs = ExampleInputs.of(given, config.capture, getattr(model, "forward", None))
    canonical, _ = select_sites(model, inputs, config, verification="structure")
    _check_same_model(plan, canonical)
    found = fingerprint(canonical)
    load_weights(canonical, folder / "weights.safetensors")
    InsertGatesPass(config)(canonical)
    gateable = plan.original_comparisons - plan.fixed_comparisons
    allowance = Allowance(plan.budget, gateable, plan.fixed_comparisons, plan.allowed)
    gated = GatedModel(canonical, allowance, config, inputs, fingerprint=found)
    _apply(gated, plan)
    return lower(gated, title=type(model).__name__, consume=True)


def _settings(folder: Path) -> TransformConfig:
    path = folder / "settings.yaml"
    return parse_config(load_yaml(path))


def _zeros(folder: Path) -> tuple[Tensor, ...]:
    """Inputs of the shapes that the ONNX file takes."""
    session = SavedModel(folder).session
    return tuple(torch.from_numpy(value) for value in session.zeros(2).values())


def _check_same_model(plan: Plan, module: CapturedModule) -> None:
    found = fingerprint(module)
    planned = {site.name: site.shape for site in plan.sites} | {site.name: (site.comparisons,) for site in plan.fixed}
    present = {s.name: s.shape if s.gateable else (s.comparisons,) for s in sites_of(module)}
    if found == plan.fingerprint and set(planned) == set(present):
        return
    missing, extra = [n for n in planned if n not in present], [n for n in present if n not in planned]
    renamed = [f"{a} → {b}" for a, b in zip(missing, extra, strict=False) if planned[a] == present[b]]
    lines = [
        f"  {label}: {', '.join(names)}"
        for label, names in (("missing", missing), ("extra", extra), ("renamed, it seems", renamed))
        if names
    ] or ["  the sites are the same; operations, their arguments or shapes differ"]
    raise PlanError(
        "The plan was made for another model:\n" + "\n".join(lines),
        received=f"a model with fingerprint {found[:12]}; the plan has {plan.fingerprint[:12]}",
        fix="Build the model with the arguments, and the input shape, that it had when it was transformed.",
    )


def _apply(gated: GatedModel, plan: Plan) -> None:
    """Set states, polynomials and phase as the plan has them."""
    gates = gated.gates
    for site in plan.sites:
        gate = gates[site.name]
        gate.kept.copy_(torch.from_numpy(site.kept).view(gate.kept.shape))
        gate.set_coefficients(torch.from_numpy(site.coefficients))
    gated.calibrated_on = plan.calibrated_on
    gated.notes = list(plan.notes)
    gated.freeze()
