"""autorep-fx: compile PyTorch models to a budget of secure comparisons.

Public names load on first use, so that importing the package imports neither torch nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autorep_fx.api import sweep, transform
    from autorep_fx.artifact import load
    from autorep_fx.budget import Budget
    from autorep_fx.compiled import Compiled
    from autorep_fx.config import PipelineConfig, TransformConfig
    from autorep_fx.cost import count_comparisons
    from autorep_fx.errors import AutorepError
    from autorep_fx.inspection import Inspection, inspect
    from autorep_fx.pareto import Sweep
    from autorep_fx.pipeline import run_pipeline
    from autorep_fx.plan import Plan
    from autorep_fx.stages import (
        calibrate,
        canonicalize,
        capture,
        finetune,
        lower,
        prepare,
        project,
        train_gates,
    )
    from autorep_fx.training.gated_model import GatedModel
    from autorep_fx.training.objective import kd_loss
    from autorep_fx.training.trainer import GateTrainer

__all__ = [
    "AutorepError",
    "Budget",
    "Compiled",
    "GateTrainer",
    "GatedModel",
    "Inspection",
    "PipelineConfig",
    "Plan",
    "Sweep",
    "TransformConfig",
    "calibrate",
    "canonicalize",
    "capture",
    "count_comparisons",
    "finetune",
    "inspect",
    "kd_loss",
    "load",
    "lower",
    "prepare",
    "project",
    "run_pipeline",
    "sweep",
    "train_gates",
    "transform",
]

__version__ = "0.1.0"

_HOMES = {
    "AutorepError": "errors",
    "Budget": "budget",
    "Compiled": "compiled",
    "GateTrainer": "training.trainer",
    "GatedModel": "training.gated_model",
    "Inspection": "inspection",
    "PipelineConfig": "config",
    "Plan": "plan",
    "TransformConfig": "config",
    "count_comparisons": "cost",
    "inspect": "inspection",
    "kd_loss": "training.objective",
    "load": "artifact",
    "Sweep": "pareto",
    "run_pipeline": "pipeline",
    "sweep": "api",
    "transform": "api",
} | dict.fromkeys(
    (
        "calibrate",
        "canonicalize",
        "capture",
        "finetune",
        "lower",
        "prepare",
        "project",
        "train_gates",
    ),
    "stages",
)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        try:  # subpackages such as autorep_fx.runtime, without an import of their own
            return importlib.import_module(f"autorep_fx.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"autorep_fx.{name}":
                raise  # something that the subpackage needs is missing: say that, not that the name is wrong
            raise AttributeError(f"module 'autorep_fx' has no attribute {name!r}") from error
    value = getattr(importlib.import_module(f"autorep_fx.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
