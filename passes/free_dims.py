"""What torch.export is told of the sizes of inputs: which are free, in the structure that it wants."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.errors import UnsupportedModelError
from autorep_fx.passes.inputs import ExampleInputs

__all__ = ["dynamic_shapes"]


def dynamic_shapes(
    forward: Callable[..., Any], inputs: ExampleInputs, places: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Free axes under the names of forward's parameters.

    Args:
        forward: What the inputs go into.
        inputs: Example inputs, whose batch is free unless it is fixed.
        places: ``(input, axis)`` of heights and widths that are free, inputs counted among those that are tensors.

    Raises:
        UnsupportedModelError: Keywords go into a ``**`` parameter, for which torch.export has no form.
    """
    batch = torch.export.Dim("batch", min=1)
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    axes: list[Any] = []
    position = -1
    for leaf, batched in zip(leaves, inputs.flags(), strict=True):
        position += isinstance(leaf, Tensor)
        free: dict[int, Any] = {0: batch} if batched and not inputs.fixed_batch else {}
        # What relations the sizes must have (multiples, equal ones) torch finds out by itself.
        free |= {axis: torch.export.Dim.DYNAMIC for place, axis in places if place == position}
        axes.append((free or None) if isinstance(leaf, Tensor) else None)
    args, kwargs = _described((inputs.args, dict(inputs.kwargs)), iter(axes))
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs).arguments
    loose = [f"**{name}" for name in bound if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD]
    if loose:
        raise UnsupportedModelError(
            [f"forward takes {', '.join(kwargs)} by {loose[0]}, for which torch.export has no form"],
            fix="Wrap the model in a module whose forward names its parameters.",
        )
    return dict(bound)


def _described(value: Any, axes: Iterator[Any]) -> Any:
    """The axes in the structure of ``value``, with a list in place of each dataclass."""
    children, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
    if len(children) == 1 and children[0] is value:
        return next(axes)
    described = [_described(child, axes) for child in children]
    return described if dataclasses.is_dataclass(value) else pytree.tree_unflatten(described, spec)
