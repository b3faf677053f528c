"""One compilation: a model and a resolved request in, a compiled model out; what ``transform`` and ``sweep`` share."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.budget import Budget
from autorep_fx.compiled import Compiled
from autorep_fx.config import TransformConfig
from autorep_fx.errors import NonFiniteError, UnsupportedModelError
from autorep_fx.files import write_text
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.export_obstacles import export_obstacles
from autorep_fx.passes.exported import is_exported
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.stages import calibrate, finetune, lower, prepare, project, train_gates
from autorep_fx.training.environment import describe_run
from autorep_fx.training.evaluation import evaluate
from autorep_fx.training.fabric import is_first_process
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.history import Callback
from autorep_fx.training.logs import TrainingLog
from autorep_fx.training.objective import Objective
from autorep_fx.training.ranges import beyond_range
from autorep_fx.training.trainer import GateTrainer

__all__ = ["Request", "compile_model", "evaluate_original", "metric_name"]

logger = logging.getLogger(__name__)
# Distance of the outputs (RMS) from which on a model that was not trained is said to be another one.
_RUINED = 0.5


@dataclass(frozen=True)
class Request:
    """What is to be compiled, and on what; everything but the budget.

    Attributes:
        model: The trained model, or an exported program of it; never changed.
        inputs: Example inputs.
        settings: Settings.
        objective: Loss, metric and call of the model.
        data: Training batches; None to choose without training.
        val_data: Validation batches, or None.
        seed: Seed of everything random.
        device: ``cpu`` or ``cuda``.
        callbacks: Called with every logged point.
        captured: The model's captured graph, if it is there already.
    """

    model: nn.Module | torch.export.ExportedProgram
    inputs: ExampleInputs
    settings: TransformConfig
    objective: Objective
    data: Iterable[Any] | None
    val_data: Iterable[Any] | None
    seed: int
    device: str
    callbacks: Sequence[Callback] = ()
    captured: CapturedModule | None = None

    def original(self) -> nn.Module:
        """A copy in eval mode, which an exported program only has as a captured module."""
        if isinstance(self.model, torch.export.ExportedProgram) or is_exported(self.model):
            return capture_graph(self.model, self.inputs)
        return copy.deepcopy(self.model).eval()


def compile_model(
    request: Request, budget: Budget, *, target: Path | None = None, resume: bool = False,
    start: Mapping[str, Tensor] | None = None, keep_state: Callable[[GatedModel], None] | None = None,
) -> Compiled:  # fmt: skip
    """Compile to one budget.

    Args:
        request: What is compiled.
        budget: The budget.
        target: Folder for the result and the checkpoints.
        resume: Go on from the checkpoint in ``target``, if there is one.
        start: State of a gated model of the same request at a larger budget, to start from instead of calibrating.
        keep_state: Called with the trained model, before it is taken apart.

    Raises:
        AutorepError: As of :func:`autorep_fx.transform`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(request.seed)
        model = request.model if request.captured is None else request.captured
        gated = prepare(model, budget, example_inputs=request.inputs, config=request.settings)
        before = evaluate_original(request)  # a metric that does not work is found before anything is trained
        if request.data is None:
            compiled = _without_training(request, gated)
        else:
            compiled = _trained(request, gated, target, resume, start, keep_state)
        if request.val_data is not None:
            compiled = _with_metrics(request, compiled, before)
            ranges = {site.name: site.input_range for site in compiled.plan.sites if site.input_range is not None}
            warnings = beyond_range(gated, ranges, request.val_data)
            compiled = replace(compiled, warnings=(*compiled.warnings, *warnings))
    if target is not None and is_first_process():
        compiled.save(target)
        shutil.rmtree(target / "checkpoint", ignore_errors=True)  # nothing is left to resume
    return compiled


def _trained(
    request: Request, gated: GatedModel, target: Path | None, resume: bool, start: Mapping[str, Tensor] | None,
    keep_state: Callable[[GatedModel], None] | None,
) -> Compiled:  # fmt: skip
    _check_exportable(gated)
    assert request.data is not None
    settings, seed = request.settings, request.seed
    log = None
    if target is not None and is_first_process():
        log = TrainingLog(target, tensorboard=settings.outputs.tensorboard)
        described = describe_run(seed=seed, device=request.device, execution=settings.execution)
        write_text(target / "run.json", json.dumps(described, indent=2) + "\n")
    trainer = GateTrainer(
        gated, request.original(), settings, objective=request.objective, data=request.data,
        val_data=request.val_data, device=request.device, seed=seed,
        callbacks=request.callbacks if log is None else (*request.callbacks, log),
        checkpoint=None if target is None else target / "checkpoint",
    )  # fmt: skip
    if resume and trainer.resume():
        if log is not None:
            log.restart(trainer.history)
    else:
        if resume and target is not None and (target / "plan.json").exists():
            logger.warning("%s holds a finished result and no checkpoint to go on from: it is made anew", target)
        if start is not None:
            gated.start_from(start, request.data)
        else:
            calibrate(gated, request.data, seed=seed)
    train_gates(trainer)
    project(gated)
    finetune(trainer)
    gated.fit_to_cost()
    if keep_state is not None:
        keep_state(gated)
    differences = [f"training was not the model's own: {text}" for text in gated.network.training_differences]
    compiled = lower(gated, title=type(request.model).__name__, consume=True)
    return replace(compiled, history=tuple(trainer.history), warnings=(*compiled.warnings, *differences))


def _check_exportable(gated: GatedModel) -> None:
    """Before hours of training: refuse what could not be exported after them.

    Raises:
        UnsupportedModelError: With every obstacle.
    """
    obstacles = _obstacles(gated)
    if obstacles:
        raise UnsupportedModelError(
            obstacles, fix="Change the model; or set outputs: {onnx: false}, and use the compiled module in torch."
        )


def _obstacles(gated: GatedModel) -> list[str]:
    return export_obstacles(gated.network, gated.example) if gated.config.outputs.onnx else []


def _without_training(request: Request, gated: GatedModel) -> Compiled:
    inputs = request.inputs
    obstacles = [f"it cannot be exported to ONNX: {text}" for text in _obstacles(gated)]
    with torch.no_grad():  # of a copy, which is gone afterwards, and its weights with it
        theirs = pytree.tree_leaves(inputs.to(device="cpu").call(request.original().cpu()))
    calibrate(gated, inputs, seed=request.seed)
    gated.notes.append(
        f"nothing was trained: polynomials were fitted in order on {inputs.size} example inputs, and the kept units "
        "are those whose replacement would change the outputs most, by a first-order estimate"
    )
    project(gated)
    compiled = lower(gated, title=type(request.model).__name__, consume=True)
    compiled = replace(compiled, warnings=(*compiled.warnings, *obstacles))
    with torch.no_grad():
        ours = pytree.tree_leaves(inputs.to(device="cpu").call(compiled.module))
    return _with_distance(compiled, ours, theirs)


def _with_distance(compiled: Compiled, ours: Sequence[Any], theirs: Sequence[Any]) -> Compiled:
    """Add how far the outputs are from the model's: without validation data the only sign of quality."""
    squares = [
        (float((a.double() - b.double()).square().sum()), float(b.double().square().sum()))
        for a, b in zip(ours, theirs, strict=True)
        if isinstance(b, Tensor) and b.is_floating_point()
    ]
    if not squares:  # labels or masks: there is no distance
        return compiled
    error, scale = (sum(column) for column in zip(*squares, strict=True))
    distance = (error / max(scale, 1e-300)) ** 0.5
    note = f"outputs on the example inputs differ from the model's by {distance:.1%} (RMS)"
    if not distance <= _RUINED:
        ruined = f"{note}: as it is, the compiled model is another one. Pass data= to train it, or keep more"
        compiled = replace(compiled, warnings=(*compiled.warnings, ruined))
    return replace(compiled, plan=replace(compiled.plan, notes=(*compiled.plan.notes, note)))


def _with_metrics(request: Request, compiled: Compiled, before: float | None) -> Compiled:
    assert request.val_data is not None
    after = evaluate(compiled.module, request.val_data, request.objective)
    if before is None or after is None:
        unmeasured = (
            "nothing was measured on the validation data: accuracy takes outputs (N, K) and integer targets (N,); for "
            "anything else pass metric=, a function (outputs, targets) -> float"
        )
        return replace(compiled, warnings=(*compiled.warnings, unmeasured))
    name = metric_name(request.objective)
    if not math.isfinite(after):
        text = f"{name} of the compiled model is {after} on the validation data"
        return replace(compiled, warnings=(*compiled.warnings, text))
    return replace(compiled, metrics={"original, torch": before, "compiled, torch": after}, metric_name=name)


def metric_name(objective: Objective) -> str:
    """``accuracy``, or the name of the user's function."""
    return "accuracy" if objective.metric is None else getattr(objective.metric, "__name__", "metric")


def evaluate_original(request: Request) -> float | None:
    """Metric of the untouched model on the validation data; None where there is none.

    Raises:
        NonFiniteError: It is NaN or infinite, and nothing could be chosen by it.
    """
    if request.val_data is None:
        return None
    with torch.random.fork_rng():
        metric = evaluate(request.original().cpu(), request.val_data, request.objective)
    if metric is not None and not math.isfinite(metric):
        raise NonFiniteError(
            f"The metric of the untouched model is {metric} on val_data.",
            fix="Check metric= and val_data: the epoch that is kept is chosen by this number.",
        )
    return metric
