"""Gates: which elements keep their activation, trained by a straight-through estimator with hysteresis."""

from __future__ import annotations

from autorep_fx.gates.activation import GatedActivation
from autorep_fx.gates.pool import GatedPool
from autorep_fx.gates.selection import select

__all__ = ["GatedActivation", "GatedPool", "select"]
