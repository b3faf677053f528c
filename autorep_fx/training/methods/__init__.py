"""Methods: how gates get from everything kept to the budget. One file per method, one table of names."""

from __future__ import annotations

from autorep_fx.config import TransformConfig
from autorep_fx.training.methods.autorep import Autorep
from autorep_fx.training.methods.base import Method
from autorep_fx.training.methods.fixed import Layerwise, Magnitude, Random
from autorep_fx.training.methods.scheduled import Scheduled
from autorep_fx.training.methods.snl import Snl

__all__ = ["METHODS", "Method", "make_method"]

METHODS: dict[str, type[Method]] = {
    "default": Scheduled, "autorep": Autorep, "snl": Snl, "layerwise": Layerwise, "random": Random,
    "magnitude": Magnitude,
}  # fmt: skip


def make_method(config: TransformConfig) -> Method:
    """The method that the settings name."""
    return METHODS[config.training.method](config)
