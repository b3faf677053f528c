"""Free sizes: heights and widths that a captured graph takes other values of than those of the example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.errors import DataError
from autorep_fx.passes.inputs import ExampleInputs

__all__ = [
    "FreeSize", "at_sizes", "check_batch", "check_sizes", "check_values", "counted_at", "other_sizes", "shape_notes",
]  # fmt: skip


@dataclass(frozen=True)
class FreeSize:
    """One size that may vary, on all axes that share it.

    Attributes:
        name: ``height``, ``width``, or one of these with a number.
        axes: ``(input, axis)``, inputs counted among those that are tensors.
        example: The size that everything is counted at.
        least: The smallest size that the graph holds for.
        most: The largest one; None without a bound.
        step: What sizes differ by, such as 8 for a network that halves and doubles them three times.
    """

    name: str
    axes: tuple[tuple[int, int], ...]
    example: int
    least: int
    most: int | None
    step: int

    def takes(self, size: int) -> bool:
        """Whether the graph holds for ``size``."""
        return self.least <= size <= (self.most or size) and (size - self.example) % self.step == 0

    def __str__(self) -> str:
        bounds = f"from {self.least}" if self.most is None else f"from {self.least} to {self.most}"
        start = f", as {self.example} plus or minus multiples of {self.step}" if self.step > 1 else ""
        return f"{self.name} {bounds}{start}"

    def to_json(self) -> dict[str, Any]:
        """For the metadata of an ONNX file."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "axes")}


def other_sizes(sizes: Sequence[FreeSize]) -> list[dict[str, int]]:
    """Two further choices of sizes, for checks: larger by steps of their own, and smaller where that is allowed."""
    larger = {size.name: size.example + (1 + 2 * i) * size.step for i, size in enumerate(sizes)}
    smaller = {size.name: size.example + (-1) ** (i + 1) * size.step for i, size in enumerate(sizes)}
    chosen = [
        {size.name: choice[size.name] if size.takes(choice[size.name]) else size.example for size in sizes}
        for choice in (larger, smaller)
    ]
    example = {size.name: size.example for size in sizes}
    return [choice for i, choice in enumerate(chosen) if choice != example and choice not in chosen[:i]]


def at_sizes(inputs: ExampleInputs, sizes: Sequence[FreeSize], values: Mapping[str, int]) -> ExampleInputs:
    """The same inputs at other sizes, rows and columns repeated in turn."""
    wanted = {place: values[size.name] for size in sizes for place in size.axes}
    leaves, spec = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
    position = -1
    for i, leaf in enumerate(leaves):
        position += isinstance(leaf, Tensor)
        for axis in (axis for place, axis in wanted if isinstance(leaf, Tensor) and place == position):
            index = torch.arange(wanted[position, axis], device=leaf.device) % leaves[i].shape[axis]
            leaves[i] = leaves[i].index_select(axis, index)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return replace(inputs, args=args, kwargs=kwargs)


def check_sizes(sizes: Sequence[FreeSize], arguments: Any) -> None:
    """Check that the sizes of inputs are those that the graph was captured for.

    Raises:
        DataError: One is not.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    for size in sizes:
        found = {tensors[i].shape[axis] for i, axis in size.axes if i < len(tensors) and tensors[i].dim() > axis}
        if len(found) > 1 or not all(size.takes(value) for value in found):
            raise DataError(
                "The model was not captured for inputs of this size.",
                received=f"{size.name} {', '.join(map(str, sorted(found)))}",
                fix=f"Pass {size}" + (", the same on all axes that share it." if len(size.axes) > 1 else "."),
            )


def check_values(fixed: Sequence[tuple[int, Any]], inputs: Any) -> None:
    """Check that what is no tensor among the inputs is what the graph was captured with.

    Raises:
        DataError: It is something else.
    """
    leaves = pytree.tree_leaves(inputs)
    other = [(place, value) for place, value in fixed if place >= len(leaves) or leaves[place] != value]
    if other:
        raise DataError(
            "Inputs that are no tensors were captured with the values of the example, and hold for these alone.",
            received=", ".join(
                f"input {i}: {leaves[i] if i < len(leaves) else 'nothing'!r}, not {v!r}" for i, v in other
            ),
            fix="Pass the values of the example, or capture again with others.",
        )


def check_batch(batch: int, arguments: Any) -> None:
    """Check that inputs have the batch that the graph was captured with.

    Raises:
        DataError: None of them has.
    """
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim()]
    if all(shape[0] != batch for shape in shapes):
        raise DataError(
            f"The model was captured for a fixed batch of {batch}.",
            received=f"tensors of shape {', '.join(map(str, shapes))}",
            fix=f"Pass {batch} samples at a time; or capture with dynamic_batch, if the model can be captured so.",
        )


def counted_at(sizes: Sequence[FreeSize], inputs: ExampleInputs) -> str | None:
    """The sample that everything is counted at, such as ``3×64×64``; None where no size is free."""
    if not sizes:
        return None
    tensors = [leaf for leaf in pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, Tensor)]
    places = dict.fromkeys(place for size in sizes for place, _ in size.axes)
    return ", ".join("×".join(map(str, tensors[place].shape[1:])) for place in places)


def shape_notes(module: Any, inputs: ExampleInputs) -> list[str]:
    """What a user must know of the shapes that a captured module takes."""
    notes = []
    if module.sizes:
        free = "; ".join(map(str, module.sizes))
        notes.append(f"sizes are free ({free}), and all comparisons are counted at {counted_at(module.sizes, inputs)}")
    if module.fixed_batch is not None:
        notes.append(
            f"the batch is fixed to {module.fixed_batch}; whether samples influence one another was not checked, nor "
            "were polynomials tried on other inputs than those that they were fitted on"
        )
    return notes
