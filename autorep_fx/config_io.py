"""Reading settings, with errors that name the nearest valid key, and writing them with all defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from autorep_fx.config import PipelineConfig, TransformConfig
from autorep_fx.errors import ConfigError, did_you_mean

__all__ = ["load_pipeline", "load_yaml", "parse_config", "to_yaml"]


def parse_config(value: Any, kind: type[TransformConfig] = TransformConfig) -> TransformConfig:
    """Validate a mapping.

    Raises:
        ConfigError: With every problem: unknown keys and the nearest valid ones, wrong types, values out of range.
    """
    if isinstance(value, kind):
        return value
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ConfigError(
            "Settings are a mapping, such as {'gates': {'granularity': 'channel'}}.",
            received=type(value).__name__,
            fix="Pass a mapping, a TransformConfig, or the path of a YAML file.",
        )
    try:
        return kind.model_validate(dict(value))
    except ValidationError as error:
        problems = [_problem(kind, item) for item in error.errors()]
        lines = "\n".join(f"  {text}" for text in problems)
        raise ConfigError(f"The settings have {len(problems)} problem(s):\n{lines}") from error


def _problem(kind: type[BaseModel], item: Any) -> str:
    location = list(item["loc"])
    path = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = _keys_at(kind, location[:-1])
        hint = did_you_mean(str(location[-1]), known)
        return f"{path}: unknown key.{hint} Valid keys here: {', '.join(known)}."
    received = "" if item["type"] == "missing" else f" (received {item['input']!r})"
    return f"{path or 'settings'}: {item['msg']}{received}"


def _keys_at(kind: type[BaseModel], location: list[Any]) -> list[str]:
    """Field names of the section at ``location``; wildcards and list positions pass through."""
    current: type[BaseModel] | None = kind
    for part in location:
        field = current.model_fields.get(str(part)) if current is not None else None
        if field is None:
            continue
        current = _section_in(field.annotation) or current
    return list(current.model_fields) if current is not None else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found is not None:
            return found
    return None


def load_yaml(path: Path | str) -> Any:
    """Read a YAML file.

    Raises:
        ConfigError: It is missing or not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"The settings file {path} cannot be read.",
            received=str(error),
            fix="Write one with: autorep-fx config init FILE",
        ) from error


def load_pipeline(path: Path | str, *, method: str | None = None) -> PipelineConfig:
    """Read and validate a pipeline file.

    Args:
        path: The file.
        method: Training method in place of the file's, with its own defaults for what the file leaves out.

    Raises:
        ConfigError: It is missing, not YAML, or invalid.
    """
    value = load_yaml(path)
    if method is not None and isinstance(value, Mapping) and isinstance(value.get("training") or {}, Mapping):
        value = {**value, "training": {**(value.get("training") or {}), "method": method}}
    config = parse_config(value, PipelineConfig)
    assert isinstance(config, PipelineConfig)
    checkpoint = config.model.checkpoint
    if checkpoint is not None and (Path(path).parent / checkpoint).exists():  # before the working directory
        model = config.model.model_copy(update={"checkpoint": Path(path).parent / checkpoint})
        return config.model_copy(update={"model": model})
    return config


def to_yaml(config: BaseModel) -> str:
    """All settings, defaults filled in, as YAML that reads back to the same settings."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
