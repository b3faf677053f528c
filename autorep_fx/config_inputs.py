"""Sections of a pipeline file that say what goes in: the model, the data and the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from autorep_fx.config_sections import Section

__all__ = ["AugmentConfig", "DataConfig", "ModelConfig", "ObjectiveConfig"]


class ModelConfig(Section):
    """A model: one of the zoo or of a library, or a function that makes it."""

    zoo: str | None = Field(None, description="Name in the model zoo.")
    factory: str | None = Field(None, description="module:function that returns the model.")
    spec: str | None = Field(
        None, description="zoo:NAME, torchvision:NAME, timm:NAME, hf:CONFIG or module:function, as inspect takes it."
    )
    args: dict[str, Any] = Field({}, description="Keyword arguments of what makes the model.")
    checkpoint: Path | None = Field(None, description="safetensors file or state dict with its weights.")

    @model_validator(mode="after")
    def _one(self) -> ModelConfig:
        if sum(name is not None for name in (self.zoo, self.factory, self.spec)) != 1:
            raise ValueError("Name the model by 'spec', or by exactly one of 'zoo' and 'factory'.")
        return self


class ObjectiveConfig(Section):
    """The task, as ``module:function``; unset for cross-entropy and accuracy on a plain call of the model."""

    loss: str | None = Field(None, description="(outputs, targets) -> scalar.")
    metric: str | None = Field(None, description="(outputs, targets) -> float, larger is better.")
    forward: str | None = Field(None, description="(module, inputs) -> outputs.")


class AugmentConfig(Section):
    """One step of the augmentation of training batches."""

    name: Literal["crop", "flip", "cutout", "resized_crop"]
    pixels: int | None = Field(
        None, ge=0, description="Largest shift of a crop (4), side of the square that cutout hides (8)."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _measured(self) -> AugmentConfig:
        if self.pixels is not None and self.name not in ("crop", "cutout"):
            raise ValueError(f"{self.name} takes no pixels; crop and cutout do.")
        return self


class DataConfig(Section):
    """Data: ``digits``, ``cifar`` or ``image_folder`` with a folder, or a function that returns the splits."""

    name: str = Field(
        "digits", description="digits, cifar, image_folder, or module:function returning (train, validation)."
    )
    args: dict[str, Any] = Field({}, description="Keyword arguments of the reader, such as folder.")
    batch_size: int = Field(64, ge=1)
    augment: bool | tuple[AugmentConfig, ...] = Field(
        True,
        description="Steps in order, or true for the usual ones: crop by 1 (digits), crop and flip (cifar, "
        "image_folder), resized_crop and flip (image_folder with resident: false).",
    )
