"""What a pipeline file would do: everything that can be checked without training."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autorep_fx.budget import Budget
from autorep_fx.config import PipelineConfig
from autorep_fx.config_io import load_pipeline
from autorep_fx.cost import Allowance
from autorep_fx.errors import ConfigError, DataError, InvariantError, NonFiniteError
from autorep_fx.inspection import Inspection, inspect
from autorep_fx.loading import Splits, load_data, load_model, load_objective
from autorep_fx.passes.catalogue import build_pipeline
from autorep_fx.stages import calibrate, prepare
from autorep_fx.training.batches import count_batches, split_batch

__all__ = ["DryRun", "check_costs", "check_takes", "dry_run"]

logger = logging.getLogger(__name__)


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
    model, splits = load_model(settings.model), load_data(settings.data, settings.seed)
    inputs, targets = split_batch(next(iter(splits.train)))
    check_takes(model, settings, splits)
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


def check_takes(model: nn.Module, settings: PipelineConfig, splits: Splits) -> None:
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


def check_costs(settings: PipelineConfig, budgets: Sequence[Budget], model: nn.Module, splits: Splits) -> None:
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
