"""Checks of what ``transform`` is called with, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autorep_fx.budget import Budget
from autorep_fx.config import PipelineConfig, TransformConfig
from autorep_fx.config_io import load_yaml, parse_config
from autorep_fx.errors import ConfigError, DataError
from autorep_fx.training.batches import check_iterable

__all__ = ["check_arguments", "check_callables", "check_free", "check_trainable", "settled"]


def check_arguments(data: Any, val_data: Any, example_inputs: Any, seed: Any, resume: bool, out_dir: Any) -> None:
    """Refuse what cannot be meant, before any work.

    Raises:
        ConfigError: The seed is no seed, or there is nothing to resume from.
        DataError: There is neither data nor an example, or data cannot be iterated over again or are empty.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ConfigError("The seed is an integer from 0 to 2**31 - 1.", received=repr(seed), fix="Pass seed=0.")
    _require_example(data, example_inputs)
    for name, value in (("data", data), ("val_data", val_data)):
        if value is not None:
            check_iterable(value, name)
    if resume and out_dir is None:
        raise ConfigError("There is nothing to resume from.", fix="Pass out_dir=, the folder of the earlier run.")


def check_callables(callbacks: Any, **functions: Any) -> None:
    """Refuse what cannot be called.

    Args:
        callbacks: What should be a sequence of functions.
        **functions: What should be a function or None, by the name of the argument.

    Raises:
        ConfigError: With all of them.
    """
    problems = [
        f"{name}= is {value!r}" for name, value in functions.items() if value is not None and not callable(value)
    ]
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        problems.append(f"callbacks= is {callbacks!r}")
    if problems:
        raise ConfigError(
            "These are to be functions, and callbacks a list of them:", received="; ".join(problems),
            fix="Pass the functions themselves, such as metric=my_metric, callbacks=[on_progress].",
        )  # fmt: skip


def check_trainable(model: nn.Module) -> None:
    """Refuse to train in float16, where the squares that Adam divides by vanish.

    Raises:
        ConfigError: With how to get a float16 file all the same.
    """
    half = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16]
    if half:
        raise ConfigError(
            "A float16 model cannot be trained as it is: its updates vanish or overflow.",
            received=f"{len(half)} float16 parameters, such as {half[0]}",
            fix="Pass model.float(), and export: {dtype: float16} for a float16 file.",
        )


def _require_example(data: Any, example_inputs: Any) -> None:
    """Refuse a call that has neither data nor example inputs.

    Raises:
        DataError: With what to pass.
    """
    if data is None and example_inputs is None:
        raise DataError(
            "There is neither data nor an example input.",
            fix="Pass data=, batches (inputs, targets) to train on; or example_inputs=, such as "
            "torch.randn(8, 3, 32, 32), to compile without training.",
        )


def settled(
    config: Any, budget: Budget | None, seed: int, device: str | None
) -> tuple[TransformConfig, int, str | None]:
    """Settings, seed and device; what a file says must not contradict an argument.

    Raises:
        ConfigError: It does, or the settings are wrong.
    """
    if config is None or (isinstance(config, TransformConfig) and not isinstance(config, PipelineConfig)):
        return parse_config(config), seed, device
    given = load_yaml(config) if isinstance(config, (str, Path)) else config
    if isinstance(given, PipelineConfig):
        given = given.model_dump(mode="json", exclude_unset=True)
    if not isinstance(given, Mapping):
        return parse_config(given), seed, device
    rest = dict(given)
    problems = [
        f"{name!r} is named in the settings and given as an argument"
        for name in ("model", "data")
        if rest.pop(name, None) is not None
    ]
    stated = rest.pop("budget", None)
    if budget is not None and stated is not None and Budget.parse(stated) != budget:
        problems.append(f"the settings ask for {Budget.parse(stated)}, the argument for {budget}")
    own_seed, own_device = rest.pop("seed", None), rest.pop("device", None)
    if own_seed is not None and seed not in (0, own_seed):
        problems.append(f"the settings have seed {own_seed}, the argument is {seed}")
    if own_device is not None and device not in (None, own_device):
        problems.append(f"the settings have device {own_device}, the argument is {device}")
    if problems:
        raise ConfigError(
            "Arguments contradict the settings:\n" + "\n".join(f"  {p}" for p in problems),
            fix="Give each thing once; to run a whole pipeline file use autorep_fx.run_pipeline(path, out_dir).",
        )
    return parse_config(rest), seed if own_seed is None else own_seed, device or own_device


def check_free(target: Path, resume: bool, *more: str) -> None:
    """Refuse to write over another run's checkpoints without being told to.

    Args:
        target: Folder of the results.
        resume: Whether that run is to be taken up.
        *more: Folders in it to look at, beside those of a transformation and of a sweep.

    Raises:
        ConfigError: There are some.
    """
    found = [path for name in ("checkpoint", "budget-*/checkpoint", *more) for path in target.glob(name)]
    if found and not resume:
        raise ConfigError(
            f"The folder {target} holds the checkpoint of an earlier run.",
            received=", ".join(str(path.relative_to(target)) for path in sorted(found)),
            fix="Pass resume=True (--resume) to go on with it, delete the checkpoint, or use another out_dir.",
        )
