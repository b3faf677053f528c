"""Sections of the settings: what each part of a transformation goes by, with all defaults."""

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
    field_validator,
    model_validator,
)

from autorep_fx.budget import Budget
from autorep_fx.errors import BudgetError

__all__ = [
    "BaseConfig",
    "BudgetField",
    "CalibrationConfig",
    "CaptureConfig",
    "CheckpointConfig",
    "CostConfig",
    "ExecutionConfig",
    "ExportConfig",
    "ExportTarget",
    "FinetuneConfig",
    "GatesConfig",
    "MethodName",
    "OutputsConfig",
    "PolynomialsConfig",
    "Section",
    "SiteConfig",
    "TrainingConfig",
]

Granularity = Literal["element", "channel", "site"]
ExportTarget = Literal["any", "onnxruntime-cpu"]
MethodName = Literal["default", "autorep", "snl", "layerwise", "random", "magnitude"]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys and infinite numbers refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class CaptureConfig(Section):
    """What of the inputs' shapes may vary."""

    dynamic_size: bool = Field(
        False, description="Other heights and widths than the example's: axes 2 and 3 of batched 4-D float inputs."
    )
    dynamic_batch: bool = Field(True, description="Any batch; false fixes the batch to that of the example.")
    batch_dims: dict[str, int | None] = Field(
        {},
        description="Input name or position → 0 where axis 0 is the batch, null where the input has none. By default "
        "axis 0 is the batch where it has the size of the first input's.",
    )

    @field_validator("batch_dims", mode="before")
    @classmethod
    def _positions(cls, value: Any) -> Any:
        return {str(key): axis for key, axis in value.items()} if isinstance(value, Mapping) else value

    @field_validator("batch_dims")
    @classmethod
    def _first(cls, value: dict[str, int | None]) -> dict[str, int | None]:
        for name, axis in value.items():
            if axis not in (0, None):
                raise ValueError(
                    f"The batch of input {name!r} is on axis {axis}, and only axis 0 is supported: wrap the model in "
                    f"a module that takes (N, ...) and transposes it, x.transpose(0, {axis})"
                )
        return value


class GatesConfig(Section):
    """Gates and how their scores start."""

    granularity: Granularity = Field("element", description="What one gate decides on.")
    pools: bool = Field(False, description="Gate max pooling too: per channel, or an affine map of the average.")
    init: Literal["sensitivity", "random", "ones"] = Field(
        "sensitivity",
        description="Scores start from the rank of the measured output error, from U(0, 1) as in AutoReP, or from 1.",
    )
    band: float = Field(0.003, ge=0, description="Hysteresis band θ: flip below −θ, flip back above +θ.")


class PolynomialsConfig(Section):
    """Polynomials and their fit."""

    degree: int = Field(2, ge=0, le=2, description="Degree of the replacing polynomials.")
    form: Literal["fitted", "identity"] = Field(
        "fitted", description="Fitted and trained; or x itself, neither fitted nor trained, as in SNL."
    )
    sigma_floor: float = Field(0.05, ge=0, description="Floor of σ per channel, relative to the site's RMS σ.")
    c2_bound: float = Field(10.0, gt=0, description="Largest |c2| that a fit may give.")
    c2_scale: float = Field(0.1, gt=0, description="c2 is trained as c2_scale · parameter: slow quadratic terms.")
    refresh_until: float = Field(1.0, ge=0, le=1, description="Progress of gate training until which fits follow "
                                 "the moving input distribution; what was trained on top of them stays.")  # fmt: skip
    refresh_every: int = Field(10, ge=1, description="Optimiser steps between two refreshed fits; fewer where "
                               "many units flip.")  # fmt: skip


class CalibrationConfig(Section):
    """Data that the polynomials are fitted on."""

    samples: int = Field(256, ge=1, description="Samples to fit on.")
    prefix: Literal["auto", "replaced", "kept"] = Field(
        "auto",
        description="Fit each site with those before it replaced, with degree 1 where a quadratic overshoots; or with "
        "them kept, as a gate training begins. auto: kept before a training that can start so, which is tried.",
    )


class TrainingConfig(Section):
    """Training of gates, polynomials and weights together."""

    method: MethodName = Field("default", description="How the gates get to the budget; sets defaults of its own.")
    epochs: int = Field(10, ge=0)
    lr: float = Field(1e-3, gt=0, description="Learning rate of weights and polynomials at the start.")
    gate_lr: float = Field(1e-2, gt=0, description="Learning rate of the scores.")
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    final_lr: float = Field(0.01, ge=0, le=1, description="Share of both learning rates that their cosine ends at; 1 "
                            "keeps them, which suits a training that is fine-tuned.")  # fmt: skip
    reach: float = Field(0.7, gt=0, le=1, description="Progress at which the kept comparisons reach the budget.")
    penalty: float = Field(1.0, ge=0, description="Weight of the method's penalty on what is kept.")
    distillation: float = Field(1.0, ge=0, description="Weight of the distillation from the untouched model.")
    temperature: float = Field(4.0, gt=0, description="Temperature of the distillation.")
    features: float = Field(0.0, ge=0, description="Weight of the distance to the untouched model at the sites.")
    range_penalty: float = Field(0.0, ge=0, description="Weight of the penalty on inputs of replaced units that are "
                                 "more than four standard deviations off what their fits go by.")  # fmt: skip
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")


class FinetuneConfig(Section):
    """Training of weights and polynomials with the gates frozen."""

    epochs: int = Field(10, ge=0)
    lr: float = Field(1e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum 0.9.")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay per step of an average of the weights, which is what is "
                       "evaluated and kept; 0 for none.")  # fmt: skip
    norm_batches: int = Field(32, ge=0, description="Training batches over which the statistics of batch norms are "
                              "measured anew after an epoch; 0 leaves their running averages.")  # fmt: skip


class BaseConfig(Section):
    """Training of the ReLU model itself, for pipelines that start without a checkpoint."""

    epochs: int = Field(200, ge=1)
    optimizer: Literal["adamw", "sgd"] = Field("sgd", description="AdamW, or SGD with Nesterov momentum 0.9.")
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    warmup: float = Field(0.025, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float = Field(0.0, ge=0, lt=1, description="Decay per step of an average of the weights; 0 for none.")


def _as_text(value: Any) -> Any:
    """YAML reads 32 as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ExecutionConfig(Section):
    """How training runs, which its result should not depend on beyond rounding."""

    precision: Annotated[Literal["32", "bf16", "16"], BeforeValidator(_as_text)] = Field(
        "32", description="bf16 and 16 are mixed precision."
    )
    channels_last: bool = False
    compile: bool = Field(False, description="torch.compile for model and teacher.")
    fuse: bool | None = Field(None, description="Compile the gates alone; unset: where a compiler is and the run is "
                              "long enough to pay for it.")  # fmt: skip
    recompute: bool = Field(
        False, description="Compute inputs of gates after a batch norm again instead of keeping them."
    )
    accumulate: int = Field(1, ge=1, description="Batches per optimiser step.")
    sync_norms: bool = Field(False, description="Batch norm statistics over all processes.")
    deterministic: bool = Field(
        False, description="Deterministic algorithms only; an operation without one is an error."
    )

    @model_validator(mode="after")
    def _norms_of_a_compiled_model(self) -> ExecutionConfig:
        if self.compile and self.sync_norms:
            raise ValueError(
                "compile and sync_norms contradict each other: what takes the place of batch norms would not be in the "
                "compiled code. Set fuse: true to compile the gates alone, or leave sync_norms off"
            )
        return self


class CheckpointConfig(Section):
    """When the state of training is saved; always at the end of an epoch."""

    every_steps: int | None = Field(None, ge=1, description="Also every so many optimiser steps.")
    every_minutes: float | None = Field(10.0, gt=0, description="Also every so many minutes.")
    keep: int = Field(2, ge=1, description="How many of the last ones stay.")


class ExportConfig(Section):
    """The ONNX file."""

    opset: int = Field(20, ge=18, le=23)
    dtype: Literal["float32", "float16"] = "float32"
    target: ExportTarget = Field(
        "any", description="any engine; or onnxruntime-cpu alone, where kept channels then cost less time."
    )

    @model_validator(mode="after")
    def _blocks_are_float32(self) -> ExportConfig:
        if self.target == "onnxruntime-cpu" and self.dtype != "float32":
            raise ValueError(
                f"target onnxruntime-cpu is for float32; onnxruntime's CPU kernels have no {self.dtype} convolutions. "
                "Leave target at any, or dtype at float32"
            )
        return self


class CostConfig(Section):
    """What a budget in bytes, messages or seconds is measured by."""

    profile: Path | None = Field(None, description="Cost profile of the engine; unset: that of the package.")


class OutputsConfig(Section):
    """What is written beside plan, weights and settings."""

    onnx: bool = True
    pt2: bool = Field(False, description="A torch.export program, model.pt2, for users who stay in torch.")
    report: bool = True
    tensorboard: bool = Field(False, description="Event files of training too; needs autorep-fx[tensorboard].")


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
            "description": "'12.9K', '5%', an integer, '40MB@semi2k', '170messages@aby3', '2s@semi2k/wan', or "
            "{comparisons: n}, {fraction: f}, {seconds: 2, protocol: semi2k, network: wan}.",
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
        if self.budget is not None and self.budget.is_cost:
            raise ValueError(f"A site's own budget is in comparisons; {self.budget} is for the whole model.")
        return self
