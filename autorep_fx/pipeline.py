"""Run a pipeline file: model, data, budget and settings in, a folder of results out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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
from autorep_fx.dry_run import check_costs, check_takes
from autorep_fx.errors import CheckpointError
from autorep_fx.files import atomic_path, output_directory, write_text
from autorep_fx.loading import Splits, load_data, load_model, load_objective, load_weights
from autorep_fx.pareto import LADDER, Sweep
from autorep_fx.training.base import base_identity, train_base
from autorep_fx.training.fabric import is_first_process, resolve_device
from autorep_fx.training.history import Callback
from autorep_fx.training.logs import TrainingLog
from autorep_fx.training.objective import Objective

__all__ = ["run_pipeline", "run_sweep"]

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
    splits = load_data(settings.data, settings.seed, resolve_device(settings.device))
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
    check_takes(model, settings, splits)
    if settings.base is None or settings.model.checkpoint is not None:
        return model
    path, identity = target / "relu.safetensors", base_identity(model, settings.base, settings.seed)
    if resume and path.exists():
        _check_recipe(path, identity)
        load_weights(model, path)
    else:
        check_costs(settings, budgets, model, splits)
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
