"""Nested values of tensors: inputs and outputs of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.errors import DataError

__all__ = ["all_finite", "batch_size", "map_tensors", "register_dataclasses"]


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a nested value."""
    return pytree.tree_map_only(Tensor, function, value)


def register_dataclasses(value: Any) -> None:
    """Tell torch of the dataclasses among inputs or outputs, so that it looks into them and keeps them."""
    for leaf in pytree.tree_leaves(value):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            register_dataclasses([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])


def batch_size(value: Any) -> int:
    """Size of axis 0 of the first tensor in a nested value.

    Raises:
        DataError: There is no tensor with at least one axis.
    """
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    raise DataError(
        "The inputs hold no tensor with a batch axis.",
        received=type(value).__name__,
        fix="Pass a tensor (N, ...), a tuple of them (positional) or a mapping (keywords).",
    )


def all_finite(value: Any) -> bool:
    """Whether every floating-point tensor of a nested value is free of NaN and infinity."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves)
