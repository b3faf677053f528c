"""Settings of a transformation and of a pipeline file: inert, validated, with all defaults in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from autorep_fx.budget import Budget
from autorep_fx.errors import BudgetError, did_you_mean

__all__ = [
    "CalibrationConfig",
    "DataConfig",
    "ExportConfig",
    "FinetuneConfig",
    "GatesConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OutputsConfig",
    "PassConfig",
    "PipelineConfig",
    "PolynomialsConfig",
    "SiteConfig",
    "StageConfig",
    "TrainingConfig",
    "TransformConfig",
]

Granularity = Literal["element", "channel", "site"]
#: Stage order; a pipeline may leave out the optional ones and change the passes of some.
STAGES = (
    "capture", "canonicalize", "prepare", "calibrate", "train_gates", "project", "finetune", "lower", "export"
)  # fmt: skip
OPTIONAL_STAGES = frozenset({"train_gates", "finetune"})
DEFAULT_PASSES = {"canonicalize": ("canonicalize",), "lower": ("fold_constants", "fold_batchnorm", "lower_gates")}


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys and infinite numbers refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class GatesConfig(Section):
    """Gates and how their scores start."""

    granularity: Granularity = Field("element", description="What one gate decides on.")
    pools: bool = Field(False, description="Gate max pooling too: per channel, or an affine map of the average.")
    init: Literal["sensitivity", "random"] = Field(
        "sensitivity",
        description="Scores start from the rank of the measured output error, or from U(0, 1) as in AutoReP.",
    )
    band: float = Field(0.003, ge=0, description="Hysteresis band θ: flip below −θ, flip back above +θ.")


class PolynomialsConfig(Section):
    """Polynomials and their fit."""

    degree: int = Field(2, ge=0, le=2, description="Degree of the replacing polynomials.")
    sigma_floor: float = Field(0.05, ge=0, description="Floor of σ per channel, relative to the site's RMS σ.")
    c2_bound: float = Field(10.0, gt=0, description="Largest |c2| that a fit may give.")
    c2_scale: float = Field(0.1, gt=0, description="c2 is trained as c2_scale · parameter: slow quadratic terms.")
    refresh_until: float = Field(0.2, ge=0, le=1, description="Progress of gate training until which fits follow "
                                 "the moving input distribution; trained by gradient afterwards.")  # fmt: skip
    refresh_every: int = Field(10, ge=1, description="Optimiser steps between two refreshed fits.")


class CalibrationConfig(Section):
    """Data that the polynomials are fitted on."""

    samples: int = Field(256, ge=1, description="Samples to fit on, in order, with the prefix replaced.")


class TrainingConfig(Section):
    """Training of gates, polynomials and weights together."""

    epochs: int = Field(10, ge=0)
    lr: float = Field(1e-3, gt=0, description="Learning rate of weights and polynomials at the start.")
    gate_lr: float = Field(1e-2, gt=0, description="Learning rate of the scores.")
    weight_decay: float = Field(0.0, ge=0)
    reach: float = Field(0.7, gt=0, le=1, description="Progress at which the kept comparisons reach the budget.")
    penalty: float = Field(1.0, ge=0, description="Weight of the penalty on the density above the target.")
    distillation: float = Field(1.0, ge=0, description="Weight of the distillation from the untouched model.")
    temperature: float = Field(4.0, gt=0, description="Temperature of the distillation.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")


class FinetuneConfig(Section):
    """Training of weights and polynomials with the gates frozen."""

    epochs: int = Field(10, ge=0)
    lr: float = Field(1e-3, gt=0)


class ExportConfig(Section):
    """The ONNX file."""

    opset: int = Field(20, ge=18, le=23)
    dtype: Literal["float32", "float16"] = "float32"


class OutputsConfig(Section):
    """What is written beside plan, weights and settings."""

    onnx: bool = True
    report: bool = True


def _budget(value: Any) -> Budget:
    try:
        return Budget.parse(value)
    except BudgetError as error:
        raise ValueError(str(error)) from error


BudgetField = Annotated[
    Budget,
    BeforeValidator(_budget),
    PlainSerializer(lambda budget: budget.to_json()),
    WithJsonSchema(
        {
            "description": "'12.9K', '5%', an integer, or {comparisons: n} / {fraction: f}.",
            "anyOf": [{"type": "string"}, {"type": "number"}, {"type": "object"}],
        }
    ),
]


class SiteConfig(Section):
    """Settings of single sites; unset ones fall back to the sections."""

    mode: Literal["gate", "keep", "replace", "ignore"] = Field(
        "gate",
        description="gate; keep entirely, within the budget; replace entirely; or ignore: comparisons become fixed.",
    )
    granularity: Granularity | None = None
    degree: int | None = Field(None, ge=0, le=2)
    budget: BudgetField | None = Field(
        None, description="Of each site: what it may keep, as a number or as a fraction of its own comparisons."
    )

    @model_validator(mode="after")
    def _share_of_a_gate(self) -> SiteConfig:
        if self.budget is not None and self.mode != "gate":
            raise ValueError(f"A budget of its own is for sites that are gated; this one has mode {self.mode!r}.")
        return self


class PassConfig(Section):
    """One pass: a name of the catalogue or ``module:Class``, with its options."""

    name: str
    options: dict[str, Any] = {}


class StageConfig(Section):
    """One stage and, where it is made of passes, those passes in order."""

    stage: str
    passes: tuple[PassConfig, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"stage": value}
        if isinstance(value, Mapping):
            stage = value.get("stage")
            passes = value.get("passes", DEFAULT_PASSES.get(str(stage), ()))
            if isinstance(passes, (list, tuple)):
                passes = [{"name": p} if isinstance(p, str) else p for p in passes]
            value = {**value, "passes": passes}
        return value

    @model_validator(mode="after")
    def _known(self) -> StageConfig:
        if self.stage not in STAGES:
            raise ValueError(f"There is no stage {self.stage!r}.{did_you_mean(self.stage, STAGES)}")
        if self.passes and self.stage not in DEFAULT_PASSES:
            raise ValueError(f"Stage {self.stage!r} takes no passes; {', '.join(DEFAULT_PASSES)} do.")
        return self


def _default_stages() -> tuple[StageConfig, ...]:
    return tuple(StageConfig.model_validate(stage) for stage in STAGES)


class TransformConfig(Section):
    """Everything that decides how a model is transformed, except the model, the data and the budget."""

    gates: GatesConfig = GatesConfig()
    polynomials: PolynomialsConfig = PolynomialsConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    training: TrainingConfig = TrainingConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    export: ExportConfig = ExportConfig()
    outputs: OutputsConfig = OutputsConfig()
    substitute: dict[str, str] = Field(
        {}, description="Before gating, by kind, site name, glob or module class: silu: relu, max_pool2d: avg_pool2d."
    )
    sites: dict[str, SiteConfig] = Field(
        {}, description="Settings by site name, glob, kind:KIND or class:CLASS; later entries win."
    )
    stages: tuple[StageConfig, ...] = Field(default_factory=_default_stages)
    verification: Literal["structure", "numeric", "off"] = Field(
        "numeric", description="Checks at stage boundaries; the export is always checked."
    )

    @model_validator(mode="after")
    def _ordered(self) -> TransformConfig:
        names = [stage.stage for stage in self.stages]
        expected = [name for name in STAGES if name in names]
        if names != expected:
            raise ValueError(f"Stages run once each, in the order {', '.join(STAGES)}; got {', '.join(names)}.")
        missing = [name for name in STAGES if name not in names and name not in OPTIONAL_STAGES]
        if missing:
            raise ValueError(f"The stages {', '.join(missing)} cannot be left out.")
        return self

    def has_stage(self, name: str) -> bool:
        """Whether the stage is part of the run."""
        return any(stage.stage == name for stage in self.stages)

    def passes_of(self, name: str) -> tuple[PassConfig, ...]:
        """The passes of a stage."""
        return next((stage.passes for stage in self.stages if stage.stage == name), ())


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


class DataConfig(Section):
    """Data: ``digits``, ``cifar`` with a folder, or a function that returns the splits."""

    name: str = Field("digits", description="digits, cifar, or module:function returning (train, validation).")
    args: dict[str, Any] = Field({}, description="Keyword arguments of the reader, such as folder for cifar.")
    batch_size: int = Field(64, ge=1)
    augment: bool = Field(True, description="Random shifts (digits), random crops and flips (cifar).")


class PipelineConfig(TransformConfig):
    """A pipeline file: model, data, budget, stages, training, outputs and seed."""

    model: ModelConfig
    data: DataConfig | None = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    budget: BudgetField
    seed: int = Field(0, ge=0)
    device: str | None = Field(None, description="cpu, cuda, or unset for cuda where there is one.")

    def with_overrides(self, *, budget: str | None = None, data_folder: Path | None = None) -> PipelineConfig:
        """The same settings with another budget, or with the data read from another folder.

        Raises:
            BudgetError: The budget is not in the grammar.
        """
        changes: dict[str, Any] = {}
        if budget is not None:
            changes["budget"] = Budget.parse(budget)
        if data_folder is not None:
            data = self.data or DataConfig()
            changes["data"] = data.model_copy(update={"args": {**data.args, "folder": str(data_folder)}})
        return self.model_copy(update=changes)

    def transform_config(self) -> TransformConfig:
        """The part that :func:`autorep_fx.transform` takes as ``config``."""
        return TransformConfig.model_validate({name: getattr(self, name) for name in TransformConfig.model_fields})
