"""Models by name: ``zoo:NAME``, ``torchvision:NAME``, ``timm:NAME``, ``hf:CONFIG`` and ``module:function``.

Models of a library are made with random weights and nothing is downloaded; no library is imported before it is asked
for, and one that is not installed is an error with the command that installs it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autorep_fx import models_zoo
from autorep_fx.errors import ConfigError, did_you_mean
from autorep_fx.passes.source import is_library

__all__ = ["build_model", "example_inputs", "import_object"]


def import_object(spec: str) -> Any:
    """The object at ``module:attribute``; modules beside the working directory are found too.

    Raises:
        ConfigError: The text has another form, or there is no such thing.
    """
    path, colon, attribute = spec.partition(":")
    if not (path and colon and attribute):
        raise ConfigError(
            "An object is named as module:function.", received=spec, fix="Write for example mypkg.nets:make."
        )
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{spec} cannot be imported.",
            received=str(error),
            fix="Check the spelling and that the module is installed.",
        ) from error
    finally:
        if added:
            sys.path.remove(folder)
    return found


def build_model(spec: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Make the model that ``spec`` names, with random weights unless its function loads others.

    Args:
        spec: ``zoo:``, ``torchvision:`` or ``timm:`` and a name; ``hf:`` and a configuration (its class, such as
            ``ViTConfig``, a model type, a local ``config.json`` or its folder); or ``module:function``.
        args: Keyword arguments of what makes it; of the configuration for ``hf:``.

    Raises:
        ConfigError: There is no such model, it does not take the arguments, or its library is not installed.
    """
    library, _, name = spec.partition(":")
    build = _BUILDERS.get(library)
    try:
        model = build(name, dict(args or {})) if build is not None else import_object(spec)(**(args or {}))
    except ConfigError:
        raise
    except Exception as error:  # anything may go wrong in code that is not ours
        raise ConfigError(
            f"The model {spec} cannot be made.",
            received=f"{type(error).__name__}: {error}{_where(error)}",
            fix="Check its name and arguments, and the code that makes it.",
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{spec} gives no model.", received=type(model).__name__, fix="Return a torch.nn.Module.")
    return model.eval()


def _where(error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    return f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def example_inputs(spec: str, model: nn.Module, shapes: Sequence[str] = ()) -> tuple[Tensor, ...]:
    """Two samples per positional input: noise, or zeros for an integer type.

    Args:
        spec: What ``model`` was made from.
        model: The model.
        shapes: Per input the shape of one sample, such as ``3x32x32`` or ``int64:12``; if there is none, the shape
            that the library of the model gives for it.

    Raises:
        ConfigError: A text is no such shape, or there is none and the library gives none.
    """
    if shapes:
        return tuple(_example(text) for text in shapes)
    shape = _default_shape(spec, model)
    if shape is None:
        raise ConfigError(
            f"{spec} gives no shape of its inputs.",
            fix="Pass that of one sample, such as 3x224x224, or int64:12 for indices, once per positional input.",
        )
    return (_example("x".join(map(str, shape))),)


def _default_shape(spec: str, model: nn.Module) -> tuple[int, ...] | None:
    """Shape of one sample that the library gives for the model; None where it gives none."""
    library, _, name = spec.partition(":")
    if library == "zoo":
        return models_zoo.input_shape(name)
    if library == "torchvision":
        home = inspect.getmodule(type(model))
        images = not any(part in str(home and home.__name__) for part in (".video", ".optical_flow", ".detection"))
        side = 299 if name == "inception_v3" else 224
        return (3, side, side) if images else None
    if library == "timm":
        shape = getattr(model, "default_cfg", {}).get("input_size")
        return tuple(shape) if shape else None
    return _shape_of_config(getattr(model, "config", None)) if library == "hf" else None


def _shape_of_config(config: Any) -> tuple[int, ...] | None:
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if side is None or channels is None:
        return None
    sides = side if isinstance(side, (list, tuple)) else (side, side)
    return (int(channels), *map(int, sides))


def _example(text: str) -> Tensor:
    kind, _, shape = text.rpartition(":")
    dtype = getattr(torch, kind or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"{kind!r} is no dtype.", fix="Write for example int64:12.")
    sizes = shape.lower().replace("×", "x").split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ConfigError(f"{shape!r} is no shape.", fix="Write that of one sample, without the batch: 3x32x32.")
    batch = (2, *map(int, sizes))
    return torch.randn(batch, dtype=dtype) if dtype.is_floating_point else torch.zeros(batch, dtype=dtype)


def _library(name: str) -> Any:
    """Import a library.

    Raises:
        ConfigError: It is not installed, or fails on import.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise _unusable(name, error) from error
        raise ConfigError(f"{name} is not installed.", fix=f"Run: pip install {name}") from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise _unusable(name, error) from error


def _unusable(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{name} is installed and cannot be imported.",
        received=f"{type(error).__name__}: {error}",
        fix=f"Install a build that fits the installed torch: pip install --upgrade --force-reinstall {name}",
    )


def _unknown(library: str, name: str, known: list[str]) -> ConfigError:
    return ConfigError(
        f"{library} has no model {name!r}.{did_you_mean(name, known)}",
        fix=f"Use one of its {len(known)} models, such as {', '.join(known[:3])}.",
    )


def _torchvision(name: str, args: dict[str, Any]) -> Any:
    models = _library("torchvision").models
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    options = inspect.signature(models.get_model_builder(name)).parameters
    if "weights_backbone" in options:  # its default is a download
        args.setdefault("weights_backbone", None)
    if name in ("googlenet", "inception_v3"):  # they warn unless they are told
        args.setdefault("init_weights", True)
    return models.get_model(name, **{"weights": None, **args})


def _timm(name: str, args: dict[str, Any]) -> Any:
    timm = _library("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    return timm.create_model(name, **{"pretrained": False, **args})


def _hf(name: str, args: dict[str, Any]) -> Any:
    transformers = _library("transformers")
    config = _configuration(transformers, name, args)
    if getattr(config, "architectures", None) is None:
        config.architectures = []  # where a configuration has several classifiers, transformers goes through them
    for architecture in getattr(config, "architectures", None) or ():
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)(config)
    try:
        return transformers.AutoModelForImageClassification.from_config(config)
    except ValueError:  # no image classifier has such a configuration
        return transformers.AutoModel.from_config(config)


def _configuration(transformers: Any, name: str, args: dict[str, Any]) -> Any:
    known = transformers.CONFIG_MAPPING
    if name in known:
        return known[name](**args)
    if name.endswith("Config") and name.isidentifier() and hasattr(transformers, name):
        return getattr(transformers, name)(**args)
    if Path(name).exists() or "/" in name:
        try:
            return transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False, **args)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"There is no configuration at {name}, and none of that name was downloaded before.",
                received=str(error).strip().split("\n")[0],
                fix="Download its config.json and pass its path: hf:PATH.",
            ) from error
    classes = [found for found in dir(transformers) if found.endswith("Config")]
    raise ConfigError(
        f"transformers has no configuration {name!r}.{did_you_mean(name, [*classes, *known])}",
        fix="Pass a class such as ViTConfig, a model type such as vit, or the path of a config.json.",
    )


_BUILDERS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "zoo": lambda name, args: models_zoo.create(name, **args),
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hf,
}
