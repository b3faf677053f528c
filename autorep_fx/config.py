"""Settings of a transformation and of a pipeline file: inert, validated, with all defaults in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from autorep_fx.budget import Budget
from autorep_fx.config_inputs import AugmentConfig, DataConfig, ModelConfig, ObjectiveConfig
from autorep_fx.config_methods import with_method_defaults
from autorep_fx.config_sections import (
    BaseConfig,
    BudgetField,
    CalibrationConfig,
    CaptureConfig,
    CheckpointConfig,
    CostConfig,
    ExecutionConfig,
    ExportConfig,
    FinetuneConfig,
    GatesConfig,
    OutputsConfig,
    PolynomialsConfig,
    Section,
    SiteConfig,
    TrainingConfig,
)
from autorep_fx.errors import did_you_mean

__all__ = [
    "AugmentConfig",
    "BaseConfig",
    "CalibrationConfig",
    "CaptureConfig",
    "CheckpointConfig",
    "CostConfig",
    "DataConfig",
    "ExecutionConfig",
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

#: Stage order; a pipeline may leave out the optional ones and change the passes of some.
STAGES = (
    "capture", "canonicalize", "prepare", "calibrate", "train_gates", "project", "finetune", "lower", "export"
)  # fmt: skip
OPTIONAL_STAGES = frozenset({"train_gates", "finetune"})
DEFAULT_PASSES = {
    "canonicalize": ("canonicalize",),
    "lower": (
        "fold_constants", "fold_batchnorm", "pack_channels", "absorb_affine", "drop_channels", "lower_gates",
        "merge_linear",
    ),
}  # fmt: skip


class PassConfig(Section):
    """One pass: a name of the catalogue or ``module:Class``, with its options."""

    name: str
    options: dict[str, Any] = Field({}, description="Keyword arguments of its constructor.")


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

    capture: CaptureConfig = CaptureConfig()
    gates: GatesConfig = GatesConfig()
    polynomials: PolynomialsConfig = PolynomialsConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    training: TrainingConfig = TrainingConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    execution: ExecutionConfig = ExecutionConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    cost: CostConfig = CostConfig()
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

    @model_validator(mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return with_method_defaults(value) if isinstance(value, Mapping) else value

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

    @model_validator(mode="after")
    def _inputs_are_seen(self) -> TransformConfig:
        if self.execution.recompute and self.training.range_penalty:
            raise ValueError(
                "execution.recompute and training.range_penalty contradict each other: the first never has the inputs "
                "as tensors that the second weighs. Leave one of them off."
            )
        return self

    @model_validator(mode="after")
    def _no_elements_of_free_sizes(self) -> TransformConfig:
        places = ["gates.granularity"] if self.gates.granularity == "element" else []
        places += [f"sites.{name}.granularity" for name, site in self.sites.items() if site.granularity == "element"]
        if self.capture.dynamic_size and places:
            raise ValueError(
                f"capture.dynamic_size and element gates ({', '.join(places)}) contradict each other: which elements "
                "are kept is decided at one height and width. Set gates: {granularity: channel} (or site), or leave "
                "capture.dynamic_size off."
            )
        return self

    def has_stage(self, name: str) -> bool:
        """Whether the stage is part of the run."""
        return any(stage.stage == name for stage in self.stages)

    def passes_of(self, name: str) -> tuple[PassConfig, ...]:
        """The passes of a stage."""
        return next((stage.passes for stage in self.stages if stage.stage == name), ())


class PipelineConfig(TransformConfig):
    """A pipeline file: model, data, budget, stages, training, outputs and seed."""

    model: ModelConfig
    base: BaseConfig | None = Field(None, description="How to train the ReLU model where 'model' names no checkpoint.")
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
