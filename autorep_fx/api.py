"""``transform``: a model and a budget in, a compiled model out."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.arguments import check_arguments, check_free, check_trainable, settled
from autorep_fx.budget import Budget
from autorep_fx.compiled import Compiled
from autorep_fx.config import TransformConfig
from autorep_fx.errors import DataError, UnsupportedModelError
from autorep_fx.files import output_directory
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.export_obstacles import export_obstacles
from autorep_fx.passes.exported import is_exported
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.stages import calibrate, finetune, lower, prepare, project, train_gates
from autorep_fx.training.batches import set_epoch, split_batch
from autorep_fx.training.evaluation import evaluate
from autorep_fx.training.fabric import resolve_device
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.history import Callback, Progress
from autorep_fx.training.objective import Objective
from autorep_fx.training.ranges import beyond_range
from autorep_fx.training.trainer import GateTrainer

__all__ = ["transform"]

logger = logging.getLogger(__name__)


def transform(
    model: nn.Module | torch.export.ExportedProgram,
    budget: Any,
    *,
    data: Iterable[Any] | None = None,
    val_data: Iterable[Any] | None = None,
    example_inputs: Any = None,
    config: TransformConfig | Mapping[str, Any] | Path | str | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    metric: Callable[[Any, Any], float] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    out_dir: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Compiled:
    """Compile ``model`` so that it spends no more than ``budget``.

    With ``data`` the gates, polynomials and weights are trained. Without, nothing is trained: polynomials are fitted
    on ``example_inputs`` and the kept units are those whose replacement would change the outputs most, by estimate.

    Args:
        model: The trained model, or an exported program of it with a dynamic batch. It is never changed.
        budget: ``12900`` or ``"12.9K"`` comparisons in total, ``"5%"`` or ``0.05`` of the gateable ones, ``0``
            for none,
            or a :class:`Budget`.
        data: Re-iterable batches ``(inputs, targets)``, or mappings with the targets under ``labels`` or the like.
        val_data: The same; it selects the epoch that is kept and is reported, nothing is trained on it.
        example_inputs: A tensor ``(N, ...)``, a tuple of positional or a mapping of keyword arguments. By default the
            inputs of the first batch.
        config: Settings as a mapping, a :class:`TransformConfig`, or the path of a YAML file.
        loss: ``(outputs, targets) -> scalar``. Cross-entropy by default where the output is one tensor ``(N, K)`` and
            the targets are integers.
        metric: ``(outputs, targets) -> float``, larger is better. Accuracy by default where cross-entropy applies.
        forward: ``(module, inputs) -> outputs``, for models that are not simply called with the inputs.
        out_dir: Folder for the result, its report and the checkpoints.
        resume: Go on from the checkpoint in ``out_dir``, if there is one.
        seed: Seed of everything random. The caller's generators are left alone.
        device: ``cpu`` or ``cuda`` to train on; CUDA where there is one by default.
        callbacks: Called with every logged point of training (:class:`autorep_fx.training.history.Progress`).

    Returns:
        The compiled model.

    Raises:
        BudgetError: The budget is not in the grammar, or above what the model spends.
        BudgetInfeasibleError: The budget is below what no gate can remove.
        UnsupportedModelError: The model cannot be captured.
        NoSitesError: The model has nothing to gate.
        ConfigError: Settings are wrong, or contradict an argument.
        DataError: The data are of the wrong form, or neither data nor example inputs were given.
        NonFiniteError: Data, loss or outputs are NaN or infinite.
        OutputError: ``out_dir`` cannot be written.
    """
    wanted = Budget.parse(budget)
    settings, seed, device = settled(config, wanted, seed, device)
    check_arguments(data, val_data, example_inputs, seed, resume, out_dir)
    target = None if out_dir is None else output_directory(out_dir)
    if target is not None:
        check_free(target, resume)
    if data is not None and isinstance(model, nn.Module):
        check_trainable(model)
    place, objective = resolve_device(device), Objective(loss, metric, forward)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = _first_inputs(data) if example_inputs is None else example_inputs
        inputs = ExampleInputs.of(given, settings.capture, getattr(model, "forward", None))
        gated = prepare(model, wanted, example_inputs=inputs, config=settings)
        history: Sequence[Progress] = ()
        if data is None:
            theirs = _outputs(model, inputs)
            _choose_without_training(gated, inputs, seed)
        else:
            teacher = _in_eval(model, inputs)
            _check_exportable(gated)
            trainer = GateTrainer(
                gated, teacher, settings, objective=objective, data=data, val_data=val_data, device=place, seed=seed,
                callbacks=callbacks, checkpoint=None if target is None else target / "checkpoint",
            )  # fmt: skip
            history = _train(trainer, data, resume=resume, seed=seed)
        compiled = replace(lower(gated, title=type(model).__name__, consume=True), history=tuple(history))
        compiled = (
            _with_distance(compiled, theirs, inputs)
            if data is None
            else replace(compiled, warnings=(*compiled.warnings, *_differences(gated)))
        )
        if val_data is not None:
            compiled = _with_metrics(compiled, _in_eval(model, inputs), val_data, objective)
            compiled = replace(compiled, warnings=(*compiled.warnings, *_beyond_range(gated, compiled, val_data)))
    if target is not None:
        compiled.save(target)
        shutil.rmtree(target / "checkpoint", ignore_errors=True)  # nothing is left to resume
    return compiled


def _check_exportable(gated: GatedModel) -> None:
    """Before hours of training: refuse what could not be exported after them.

    Raises:
        UnsupportedModelError: With every obstacle.
    """
    obstacles = export_obstacles(gated.network, gated.example) if gated.config.outputs.onnx else []
    if obstacles:
        raise UnsupportedModelError(
            obstacles, fix="Change the model; or set outputs: {onnx: false}, and use the compiled module in torch."
        )


def _in_eval(model: nn.Module | torch.export.ExportedProgram, inputs: ExampleInputs) -> nn.Module:
    """A copy in eval mode, which an exported program only has as a captured module."""
    if isinstance(model, torch.export.ExportedProgram) or is_exported(model):
        return capture_graph(model, inputs)
    return copy.deepcopy(model).eval()


def _beyond_range(gated: GatedModel, compiled: Compiled, data: Iterable[Any]) -> tuple[str, ...]:
    ranges = {site.name: site.input_range for site in compiled.plan.sites if site.input_range is not None}
    return beyond_range(gated, ranges, data)


def _differences(gated: GatedModel) -> list[str]:
    return [f"training was not the model's own: {text}" for text in gated.network.training_differences]


def _first_inputs(data: Iterable[Any] | None) -> Any:
    set_epoch(data, 0)
    for batch in () if data is None else data:
        first = split_batch(batch)[0]
        return dict(first.kwargs) or first.args
    raise DataError("data holds no batch.", fix="Pass data with at least one batch.")


def _train(trainer: GateTrainer, data: Iterable[Any], *, resume: bool, seed: int) -> Sequence[Progress]:
    if not (resume and trainer.resume()):
        calibrate(trainer.model, data, seed=seed)
    train_gates(trainer)
    project(trainer.model)
    finetune(trainer)
    return trainer.history


def _choose_without_training(gated: GatedModel, inputs: ExampleInputs, seed: int) -> None:
    calibrate(gated, inputs, seed=seed)
    gated.notes.append(
        f"nothing was trained: polynomials were fitted in order on {inputs.size} example inputs, and the kept units "
        "are those whose replacement would change the outputs most, by a first-order estimate"
    )
    project(gated)


@torch.no_grad()
def _outputs(model: nn.Module | torch.export.ExportedProgram, inputs: ExampleInputs) -> list[Any]:
    """Outputs of a copy in eval mode, which is gone afterwards, and its weights with it."""
    return pytree.tree_leaves(inputs.to(device="cpu").call(_in_eval(model, inputs).cpu()))


def _with_distance(compiled: Compiled, theirs: Sequence[Any], inputs: ExampleInputs) -> Compiled:
    """Add how far the outputs are from the model's: without validation data the only sign of quality."""
    with torch.no_grad():
        ours = pytree.tree_leaves(inputs.to(device="cpu").call(compiled.module))
    squares = [
        (float((a.double() - b.double()).square().sum()), float(b.double().square().sum()))
        for a, b in zip(ours, theirs, strict=True)
        if isinstance(b, Tensor) and b.is_floating_point()
    ]
    if not squares:  # labels or masks: there is no distance
        return compiled
    error, scale = (sum(column) for column in zip(*squares, strict=True))
    note = f"outputs on the example inputs differ from the model's by {(error / max(scale, 1e-300)) ** 0.5:.1%} (RMS)"
    return replace(compiled, plan=replace(compiled.plan, notes=(*compiled.plan.notes, note)))


def _with_metrics(compiled: Compiled, original: nn.Module, val_data: Iterable[Any], objective: Objective) -> Compiled:
    before = evaluate(original.cpu(), val_data, objective)
    after = evaluate(compiled.module, val_data, objective)
    if before is None or after is None:
        return compiled
    name = "accuracy" if objective.metric is None else getattr(objective.metric, "__name__", "metric")
    return replace(compiled, metrics={"original, torch": before, "compiled, torch": after}, metric_name=name)
