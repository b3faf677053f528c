"""What changed between two plans, or between two ONNX models. Works without torch."""

from __future__ import annotations

from autorep_fx.diff.models import ModelDiff, diff_models
from autorep_fx.diff.plans import PlanDiff, SiteDiff, diff_plans

__all__ = ["ModelDiff", "PlanDiff", "SiteDiff", "diff_models", "diff_plans"]
