"""What a model takes: names, shapes and types of its inputs, and whether given values fit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autorep_fx.errors import DataError, ModelFileError

__all__ = ["Array", "InputSpecs", "numpy_type"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputSpecs:
    """The inputs of a model.

    Attributes:
        shapes: Input name → shape, with names for free axes, in the model's order.
        types: Input name → NumPy type.
        sizes: Names of free axes beside the batch → ``least``, ``most``, ``step`` and ``example``.
    """

    shapes: Mapping[str, tuple[Any, ...]]
    types: Mapping[str, np.dtype[Any]]
    sizes: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return ", ".join(f"{n}: {self.types[n]} {_text(s)}" for n, s in self.shapes.items())

    def feed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], convert: Callable[[Any], Any] = np.asarray
    ) -> dict[str, Any]:  # fmt: skip
        """Values by input name, in the model's order, from positional and named ones.

        Args:
            args: Inputs in order.
            kwargs: Inputs by name.
            convert: Makes of each value something with ``shape`` and ``dtype``.

        Raises:
            DataError: Inputs are missing, unknown, given twice, or of another shape or type; with all of it.
        """
        feed = dict(zip(self.shapes, args, strict=False))
        problems = [f"input {name!r} is given twice" for name in kwargs if name in feed]
        feed |= kwargs
        problems += [f"input {name!r} is missing" for name in self.shapes if name not in feed]
        problems += [f"there is no input {name!r}" for name in kwargs if name not in self.shapes]
        if len(args) > len(self.shapes):
            problems.append(f"{len(args)} inputs were given, the model takes {len(self.shapes)}")
        result = {name: convert(feed[name]) for name in self.shapes if name in feed}
        problems += [text for name, v in result.items() for text in self.problems(name, tuple(v.shape), v.dtype)]
        self.refuse(problems)
        return result

    def refuse(self, problems: Sequence[str]) -> None:
        """Raise one error with all problems, if there are any.

        Raises:
            DataError: There are.
        """
        if problems:
            raise DataError(
                "The inputs do not fit the model:\n" + "\n".join(f"  {p}" for p in problems), fix=f"Pass {self}."
            )

    def problems(self, name: str, given: tuple[int, ...], dtype: Any) -> list[str]:
        """What is wrong with a value for one input, as texts."""
        shape, problems = self.shapes[name], []
        fits = len(shape) == len(given) and all(
            not isinstance(size, int) or size == found for size, found in zip(shape, given, strict=True)
        )
        if not fits:
            problems.append(f"input {name!r} has shape {given}, expected {_text(shape)}")
        found = str(dtype).removeprefix("torch.")  # the two libraries have the same names
        if found != str(self.types[name]):
            problems.append(f"input {name!r} is {found}, expected {self.types[name]}")
        if fits:
            pairs = list(zip(shape, given, strict=True))
            problems += [
                f"input {name!r} has {axis} {found}; the model takes {_allowed(self.sizes[axis])}"
                for axis, found in pairs
                if axis in self.sizes and not _takes(self.sizes[axis], found)
            ]
            named = {axis: found for axis, found in pairs if axis in self.sizes}
            if any(named.get(axis, found) != found for axis, found in pairs):
                problems.append(f"input {name!r} has shape {given}; axes of one name have one size")
        return problems

    def zeros(self, batch: int) -> dict[str, Array]:
        """Zeros of the right names, shapes and types; free axes have size ``batch``, or their example's size."""
        free = {name: size["example"] for name, size in self.sizes.items()}
        return {
            name: np.zeros([s if isinstance(s, int) else free.get(s, batch) for s in shape], self.types[name])
            for name, shape in self.shapes.items()
        }


def numpy_type(onnx_type: str) -> np.dtype[Any]:
    """``float32`` for ``tensor(float)``.

    Raises:
        ModelFileError: NumPy has no such type.
    """
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype({"float": "float32", "double": "float64", "string": "object"}.get(name, name))
    except TypeError as error:
        raise ModelFileError(
            "The model has an input of a type that NumPy does not have.", received=onnx_type,
            fix="Export it with inputs in float32 or float16, or integers.",
        ) from error  # fmt: skip


def _takes(size: Mapping[str, Any], found: int) -> bool:
    most = size["most"] or found
    return bool(size["least"] <= found <= most and (found - size["example"]) % size["step"] == 0)


def _allowed(size: Mapping[str, Any]) -> str:
    bounds = f"{size['least']} or more" if size["most"] is None else f"{size['least']} to {size['most']}"
    return bounds + (f", as {size['example']} ± multiples of {size['step']}" if size["step"] > 1 else "")


def _text(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
