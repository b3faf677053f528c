"""Models and data by name: what a pipeline file can ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autorep_fx.config import AugmentConfig, DataConfig, ModelConfig, ObjectiveConfig
from autorep_fx.errors import CheckpointError, ConfigError, DataError
from autorep_fx.model_specs import build_model, import_object
from autorep_fx.models_zoo import data as zoo_data
from autorep_fx.training.objective import Objective

__all__ = ["Splits", "import_object", "load_data", "load_model", "load_objective", "load_weights"]

_EVAL_BATCH = 256
_CROP_FLIP = (AugmentConfig(name="crop"), AugmentConfig(name="flip"))
_AUGMENTS: dict[str, Callable[..., zoo_data.Augment]] = {
    "crop": zoo_data.random_shift,
    "flip": zoo_data.flip,
    "cutout": zoo_data.cutout,
    "resized_crop": zoo_data.resized_crop,
}


@dataclass(frozen=True)
class Splits:
    """Batches of a data set.

    Attributes:
        train: Training batches.
        validation: Validation batches, or None.
        test: Test batches, or None; to be touched once.
    """

    train: Iterable[Any]
    validation: Iterable[Any] | None
    test: Iterable[Any] | None


def load_model(config: ModelConfig) -> nn.Module:
    """Make the model and load its weights.

    Raises:
        ConfigError: There is no such model, or it does not take the arguments.
        CheckpointError: The checkpoint is damaged or of another model.
    """
    spec = config.spec or (f"zoo:{config.zoo}" if config.zoo is not None else str(config.factory))
    model = build_model(spec, config.args)
    if config.checkpoint is not None:
        load_weights(model, config.checkpoint)
    return model.eval()


def load_objective(config: ObjectiveConfig) -> Objective:
    """The loss, metric and forward that a pipeline file names.

    Raises:
        ConfigError: One of them cannot be imported.
    """
    named = {name: getattr(config, name) for name in ("loss", "metric", "forward")}
    return Objective(**{name: None if spec is None else import_object(spec) for name, spec in named.items()})


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file, or a state dict that ``torch.save`` wrote, into ``model``.

    Raises:
        CheckpointError: It is missing, truncated, not a state dict, or of another model.
    """
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # zip, pickle, safetensors and file errors all mean the same here
        raise CheckpointError(
            f"The checkpoint {path} cannot be read.",
            received=f"{type(error).__name__}: {error}",
            fix="Pass a complete .safetensors file, or a state dict saved with torch.save(model.state_dict(), path).",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"The checkpoint {path} is no state dict.",
            received=type(state).__name__,
            fix="Save it with torch.save(model.state_dict(), path).",
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"The checkpoint {path} is of another model.",
            received=str(error),
            fix="Pass the model's own checkpoint.",
        ) from error


def load_data(config: DataConfig | None, seed: int, device: str = "cpu") -> Splits:
    """Read the data set and batch it.

    Args:
        config: What to read; None, where a pipeline names nothing, is refused.
        seed: Of the split, unless the arguments name one, and of the batches.
        device: Where the batches of a named set are, and the set itself where it is in memory.

    Raises:
        ConfigError: There is no such reader, it does not take the arguments, or nothing is named.
        DataError: The data cannot be read.
    """
    if config is None:
        raise ConfigError(
            "The pipeline names no data.",
            fix="Write data: {name: digits}, or call autorep_fx.transform in Python.",
        )
    if config.name not in _READERS:
        if ":" not in config.name:
            raise ConfigError(
                f"There is no data set {config.name!r}.", fix=f"Use {', '.join(_READERS)}, or module:function."
            )
        return _splits(import_object(config.name)(**config.args))
    arguments: dict[str, Any] = {"seed": seed, **config.args}
    if config.name != "digits" and "folder" not in arguments:
        raise ConfigError(
            f"The data set {config.name} is read from a folder"
            + (" of parquet files." if config.name == "cifar" else "."),
            fix=f"Pass --data DIR, or write data: {{name: {config.name}, args: {{folder: DIR}}}}.",
        )
    try:
        return _READERS[config.name](config, seed, arguments, device)
    except TypeError as error:
        raise ConfigError(f"The data set {config.name} does not take these arguments.", received=str(error)) from error
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"The data set {config.name} cannot be read.", received=str(error)) from error


def _digits(config: DataConfig, seed: int, arguments: dict[str, Any], device: str) -> Splits:
    return _in_memory(zoo_data.digits(**arguments), config, seed, device, (AugmentConfig(name="crop", pixels=1),))


def _cifar(config: DataConfig, seed: int, arguments: dict[str, Any], device: str) -> Splits:
    return _in_memory(zoo_data.cifar(**arguments), config, seed, device, _CROP_FLIP)


def _image_folder(config: DataConfig, seed: int, arguments: dict[str, Any], device: str) -> Splits:
    if arguments.pop("resident", True):
        return _in_memory(zoo_data.image_folder(**arguments), config, seed, device, _CROP_FLIP)
    workers = arguments.pop("workers", 0)
    files = zoo_data.image_files(**arguments)
    steps = _steps(config, (AugmentConfig(name="resized_crop"), AugmentConfig(name="flip")))
    # The random part is taken as an image is decoded, from its full resolution, so it comes first.
    random_crop = any(step.name == "resized_crop" for step in steps)
    train = zoo_data.FileBatches(
        files.train, config.batch_size, seed=seed, random_crop=random_crop, workers=workers,
        augment=_augment([step for step in steps if step.name != "resized_crop"]),
    )  # fmt: skip
    others = (
        zoo_data.FileBatches(part, _EVAL_BATCH, shuffle=False, workers=workers)
        for part in (files.validation, files.test)
    )
    return Splits(train.to(device), *(part.to(device) for part in others))


_Reader = Callable[[DataConfig, int, dict[str, Any], str], Splits]
_READERS: dict[str, _Reader] = {"digits": _digits, "cifar": _cifar, "image_folder": _image_folder}


def _in_memory(
    images: zoo_data.ImageData[zoo_data.Split], config: DataConfig, seed: int, device: str,
    usual: Sequence[AugmentConfig],
) -> Splits:  # fmt: skip
    augment = _augment(_steps(config, usual))
    return Splits(
        zoo_data.Batches(images.train.to(device), config.batch_size, seed=seed, augment=augment),
        zoo_data.Batches(images.validation.to(device), _EVAL_BATCH, shuffle=False),
        zoo_data.Batches(images.test.to(device), _EVAL_BATCH, shuffle=False),
    )


def _steps(config: DataConfig, usual: Sequence[AugmentConfig]) -> Sequence[AugmentConfig]:
    if isinstance(config.augment, bool):
        return usual if config.augment else ()
    return config.augment


def _augment(steps: Sequence[AugmentConfig]) -> zoo_data.Augment | None:
    made = [
        _AUGMENTS[step.name]() if step.pixels is None else _AUGMENTS[step.name](step.pixels) for step in steps
    ]  # fmt: skip
    return zoo_data.compose(*made) if made else None


def _splits(value: Any) -> Splits:
    if isinstance(value, (tuple, list)) and 1 <= len(value) <= 3:
        return Splits(*value, *[None] * (3 - len(value)))
    raise DataError(
        "A data function returns (train, validation) or (train, validation, test) batches.",
        received=type(value).__name__,
    )
