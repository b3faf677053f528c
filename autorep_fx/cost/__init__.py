"""What a model costs: nominal comparisons, multiplications, depth. Works without torch."""

from __future__ import annotations

from autorep_fx.cost.count import count_comparisons, count_sites
from autorep_fx.cost.resolve import Allowance, resolve

__all__ = ["Allowance", "count_comparisons", "count_sites", "resolve"]
