"""The passes that a pipeline file can name, and how a name becomes a pass."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from autorep_fx.config import PassConfig
from autorep_fx.errors import ConfigError, did_you_mean
from autorep_fx.passes.absorb_affine import AbsorbAffinePass
from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.drop_channels import DropChannelsPass
from autorep_fx.passes.fold_batchnorm import FoldBatchnormPass
from autorep_fx.passes.fold_constants import FoldConstantsPass
from autorep_fx.passes.infra import Pass, Pipeline
from autorep_fx.passes.lower_gates import LowerGatesPass
from autorep_fx.passes.merge_linear import MergeLinearPass
from autorep_fx.passes.pack_channels import PackChannelsPass

__all__ = ["CATALOGUE", "build_pipeline"]

CATALOGUE: dict[str, type[Pass]] = {
    "canonicalize": CanonicalizePass,
    "fold_constants": FoldConstantsPass,
    "fold_batchnorm": FoldBatchnormPass,
    "pack_channels": PackChannelsPass,
    "absorb_affine": AbsorbAffinePass,
    "drop_channels": DropChannelsPass,
    "lower_gates": LowerGatesPass,
    "merge_linear": MergeLinearPass,
}


def build_pipeline(stage: str, passes: Sequence[PassConfig]) -> Pipeline:
    """The passes of a stage, in order.

    Raises:
        ConfigError: A name is unknown, is no pass, or does not take the options.
    """
    return Pipeline(*(_build(item) for item in passes), name=stage)


def _build(item: PassConfig) -> Pass:
    kind = _find(item.name)
    try:
        return kind(**item.options)
    except TypeError as error:
        raise ConfigError(
            f"The pass {item.name!r} does not take these options.",
            received=f"{item.options}: {error}",
            fix="Pass the keyword arguments of its constructor.",
        ) from error


def _find(name: str) -> type[Pass]:
    if ":" not in name:
        if name not in CATALOGUE:
            raise ConfigError(
                f"There is no pass {name!r}.{did_you_mean(name, list(CATALOGUE))}",
                fix=f"Use one of {', '.join(CATALOGUE)}, or your own as 'module:Class'.",
            )
        return CATALOGUE[name]
    path, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The pass {name!r} cannot be imported.", received=str(error)) from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise ConfigError(
            f"{name!r} is no pass.", received=repr(found), fix="Derive it from autorep_fx.passes.infra.Pass."
        )
    return found
