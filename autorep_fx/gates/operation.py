"""An operation of the graph as a function of its tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Operation"]


@dataclass(frozen=True)
class Operation:
    """A callable with its arguments that are no tensors bound; equal operations are equal and have one hash.

    Attributes:
        target: What is called.
        scalars: Arguments after the tensors.
        options: Keyword arguments, as pairs.
    """

    target: Callable[..., Any]
    scalars: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, target: Callable[..., Any], scalars: Any = (), options: Mapping[str, Any] | None = None) -> Operation:
        """Bind arguments; lists, such as the sizes of a pool, become tuples."""
        fixed = tuple(tuple(value) if isinstance(value, list) else value for value in scalars)
        return cls(target, fixed, tuple((options or {}).items()))

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The result for ``tensors``."""
        result: Tensor = self.target(*tensors, *self.scalars, **dict(self.options))
        return result
