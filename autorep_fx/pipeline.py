"""Run a pipeline file: model, data, budget and settings in, a folder of results out."""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from autorep_fx.api import sweep, transform
from autorep_fx.arguments import check_free
from autorep_fx.budget import Budget
from autorep_fx.compiled import Compiled
from autorep_fx.config import PipelineConfig
from autorep_fx.config_io import load_pipeline, to_yaml
from autorep_fx.cost import Allowance
from autorep_fx.errors import CheckpointError, ConfigError, DataError, InvariantError, NonFiniteError
from autorep_fx.files import atomic_path, output_directory, write_text
from autorep_fx.inspection import Inspection, inspect
from autorep_fx.loading import Splits, load_data, load_model, load_objective, load_weights
from autorep_fx.pareto import LADDER, Sweep
from autorep_fx.passes.catalogue import build_pipeline
from autorep_fx.stages import calibrate, prepare
from autorep_fx.training.base import base_identity, train_base
from autorep_fx.training.batches import count_batches, split_batch
from autorep_fx.training.fabric import is_first_process, resolve_device
from autorep_fx.training.history import Callback
from autorep_fx.training.logs import TrainingLog
from autorep_fx.training.objective import Objective

__all__ = ["DryRun", "dry_run", "load_splits", "run_pipeline", "run_sweep"]

logger = logging.getLogger(__name__)
# In the metadata of relu.safetensors: what the training depended on.
_IDENTITY = "autorep_fx.identity"
_BASE_CHECKPOINT = "relu-checkpoint"


def run_pipeline(
    config: PipelineConfig | Path | str,
    out_dir: Path | str,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Compiled:
    """Run a pipeline and write plan, weights, ONNX file, report and the settings with all defaults filled in.

    Args:
        config: A pipeline file, or its settings.
        out_dir: Folder for the results; made if needed.
        resume: Go on from the checkpoint in ``out_dir``, if there is one.
        callbacks: Called with every logged point of training.

    Raises:
        ConfigError: The file is invalid.
        AutorepError: Whatever :func:`autorep_fx.transform` raises.
    """
    settings = config if isinstance(config, PipelineConfig) else load_pipeline(config)
    model, arguments = _prepared(settings, [settings.budget], out_dir, resume, callbacks)
    return transform(model, settings.budget, **arguments)


def run_sweep(
    config: PipelineConfig | Path | str,
    out_dir: Path | str,
    *,
    budgets: Sequence[Any] = LADDER,
    max_metric_drop: float = 0.01,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Sweep:
    """Run a pipeline at falling budgets, whatever budget its file names; see :func:`autorep_fx.sweep`.

    Args:
        config: A pipeline file, or its settings.
        out_dir: Folder for the results; made if needed.
        budgets: The budgets.
        max_metric_drop: What the metric may fall by, for the winner.
        resume: Take up what is finished in ``out_dir``.
        callbacks: Called with every logged point of training.

    Raises:
        ConfigError: The file is invalid.
        AutorepError: Whatever :func:`autorep_fx.transform` raises.
    """
    settings = config if isinstance(config, PipelineConfig) else load_pipeline(config)
    model, arguments = _prepared(settings, [Budget.parse(b) for b in budgets], out_dir, resume, callbacks)
    return sweep(model, budgets, max_metric_drop=max_metric_drop, **arguments)


def _prepared(
    settings: PipelineConfig,
    budgets: Sequence[Budget],
    out_dir: Path | str,
    resume: bool,
    callbacks: Sequence[Callback],
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a pipeline and the arguments of its transformation; the settings are written."""
    target = output_directory(out_dir)
    check_free(target, resume, _BASE_CHECKPOINT)
    objective = load_objective(settings.objective)
    splits = load_splits(settings, resolve_device(settings.device))
    if is_first_process():
        write_text(target / "pipeline.yaml", to_yaml(settings))
    model = _relu_model(settings, budgets, splits, objective, target, resume, callbacks)
    return model, {
        "data": splits.train, "val_data": splits.validation, "config": settings.transform_config(), "out_dir": target,
        "resume": resume, "seed": settings.seed, "device": settings.device, "callbacks": callbacks,
        "loss": objective.loss, "metric": objective.metric, "forward": objective.forward,
    }  # fmt: skip


def _relu_model(
    settings: PipelineConfig, budgets: Sequence[Budget], splits: Splits, objective: Objective, target: Path,
    resume: bool, callbacks: Sequence[Callback],
) -> nn.Module:  # fmt: skip
    """The model that is compiled: as it is named, or trained by the recipe where it comes without weights.

    What was trained is in ``relu.safetensors``, and is not trained again by a run that is taken up.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # a run that is taken up begins with the same weights
        model = load_model(settings.model)
    _check_takes(model, settings, splits)
    if settings.base is None or settings.model.checkpoint is not None:
        return model
    path, identity = target / "relu.safetensors", base_identity(model, settings.base, settings.seed)
    if resume and path.exists():
        _check_recipe(path, identity)
        load_weights(model, path)
    else:
        _check_costs(settings, budgets, model, splits)
        train_base(
            model, settings.base, objective=objective, data=splits.train, val_data=splits.validation,
            execution=settings.execution, checkpoints=settings.checkpoints, device=resolve_device(settings.device),
            seed=settings.seed, callbacks=callbacks, checkpoint=target / _BASE_CHECKPOINT, resume=resume,
            log=TrainingLog(target, "relu-training") if is_first_process() else None,
        )  # fmt: skip
        if is_first_process():
            with atomic_path(path) as temporary:
                state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
                save_file(state, temporary, metadata={_IDENTITY: identity})
            shutil.rmtree(target / _BASE_CHECKPOINT, ignore_errors=True)
    return model.cpu().eval()


def _check_recipe(path: Path, identity: str) -> None:
    """Refuse to go on from a ReLU model of another recipe.

    Raises:
        CheckpointError: It is one, or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(_IDENTITY)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read.", received=str(error), fix="Delete it.") from error
    if found != identity:
        raise CheckpointError(
            f"The ReLU model {path} is of another run.",
            received=f"identity {found}",
            fix="Resume with the model, base and seed that it was trained with, or use another folder.",
        )


def load_splits(config: PipelineConfig, device: str = "cpu") -> Splits:
    """The data of a pipeline, with the batches of a named set on ``device``.

    Raises:
        ConfigError: It names none.
    """
    if config.data is None:
        raise ConfigError(
            "The pipeline names no data.",
            fix="Write data: {name: digits}, or call autorep_fx.transform in Python.",
        )
    return load_data(config.data, config.seed, device)


@dataclass(frozen=True)
class DryRun:
    """What a pipeline would do.

    Attributes:
        config: The settings with all defaults filled in.
        inspection: Sites of the model.
        allowance: The budget, resolved; one in bytes, messages or seconds with the weights as they are.
        steps: Optimiser steps of all phases, that of the ReLU model among them.
    """

    config: PipelineConfig
    inspection: Inspection
    allowance: Allowance
    steps: int


def dry_run(config: PipelineConfig | Path | str) -> DryRun:
    """Check all of a pipeline that can be checked without training: settings, model, data, sites, budget.

    Raises:
        AutorepError: Whatever a run would find wrong before it trains.
    """
    settings = config if isinstance(config, PipelineConfig) else load_pipeline(config)
    model, splits = load_model(settings.model), load_splits(settings)
    inputs, targets = split_batch(next(iter(splits.train)))
    _check_takes(model, settings, splits)
    inspection = inspect(model, inputs, config=settings.transform_config())
    objective = load_objective(settings.objective)
    objective.task_loss(objective.run(model, inputs), targets)
    for stage in settings.stages:
        build_pipeline(stage.stage, stage.passes)
    epochs = sum(
        section.epochs
        for name, section in (("train_gates", settings.training), ("finetune", settings.finetune))
        if settings.has_stage(name)
    )
    if settings.base is not None and settings.model.checkpoint is None:
        epochs += settings.base.epochs
    steps = math.ceil(count_batches(splits.train, "data") / settings.execution.accumulate)
    allowance = _allowance(settings, settings.budget, model, inputs)
    return DryRun(settings, inspection, allowance, epochs * steps)


def _check_takes(model: nn.Module, settings: PipelineConfig, splits: Splits) -> None:
    """Where a file names no data, say so before a model is blamed for not taking the digits.

    Raises:
        ConfigError: The model does not take them.
    """
    if "data" in settings.model_fields_set or splits.validation is None:
        return
    inputs, _ = split_batch(next(iter(splits.validation)))  # in order: the training data would draw another one
    try:
        inputs.to(device="cpu").try_on(copy.deepcopy(model).eval())
    except DataError as error:
        raise ConfigError(
            "The pipeline names no data, and its model does not take the digits, which are the default.",
            received=error.what,
            fix="Add data: to the file, such as data: {name: cifar, args: {folder: FOLDER}} or data: {name: "
            "MODULE:FUNCTION}.",
        ) from error


def _allowance(settings: PipelineConfig, budget: Budget, model: nn.Module, inputs: Any) -> Allowance:
    """What a budget allows; one in bytes, messages or seconds as far as the present weights tell.

    Raises:
        BudgetError: It cannot be met.
        ConfigError: Settings do not fit the model.
    """
    config = settings.transform_config()
    gated = prepare(model, budget, example_inputs=inputs, config=config)
    if not budget.is_cost:
        return gated.allowance
    return calibrate(gated, gated.example, seed=settings.seed).allowance


def _check_costs(settings: PipelineConfig, budgets: Sequence[Budget], model: nn.Module, splits: Splits) -> None:
    """Hours of training should not come before a budget in bytes, messages or seconds that cannot be met.

    Raises:
        BudgetError: One cannot.
    """
    for budget in budgets:
        if not budget.is_cost:
            continue
        try:
            _allowance(settings, budget, model, split_batch(next(iter(splits.train)))[0])
        except (NonFiniteError, InvariantError) as error:  # of weights that were never trained
            logger.warning("What %s allows can be told after the training only: %s", budget, error)
