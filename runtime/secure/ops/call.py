"""What an operation is given, and how operations are listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from autorep_fx.runtime.secure.public import Node

__all__ = ["Call", "Operator", "Value"]

#: Public values are NumPy arrays, known when a program is built; secret ones are JAX arrays of float32.
Value = Any


@dataclass(frozen=True)
class Call:
    """One operation with its values.

    Attributes:
        node: The operation.
        args: Values of its inputs; None for those that are absent.
        laid_out: Gives input ``i`` in the layout that the operation declares for it.
    """

    node: Node
    args: Sequence[Value]
    laid_out: Callable[[int], Value]

    def __getitem__(self, index: int) -> Value:
        return self.args[index] if index < len(self.args) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the operation."""
        return self.node.attributes.get(name, default)

    @property
    def xp(self) -> Any:
        """NumPy where all values are public, so that the result is, too; else ``jax.numpy``."""
        return np if all(value is None or isinstance(value, np.ndarray) for value in self.args) else jnp

    def integers(self, index: int, attribute: str | None = None) -> list[int] | None:
        """Public integers from an input, or from the attribute that older operator sets have instead."""
        value = self[index]
        if value is None:
            found = self.attribute(attribute) if attribute else None
            return None if found is None else [int(item) for item in np.atleast_1d(found)]
        if not isinstance(value, np.ndarray):
            raise TypeError(f"input {index} has to be public, and depends on secret values")
        return [int(item) for item in value.ravel()]


@dataclass(frozen=True)
class Operator:
    """How an ONNX operator runs.

    Attributes:
        run: Computes the result, or a tuple of them.
        obstacles: Says what of an operation's attributes has no form here.
        layouts: Input index → function that turns a weight, ``(weight, node)``, into the form that ``run`` reads; it is
            applied to weights once, in the clear, before they are shared.
    """

    run: Callable[[Call], Value]
    obstacles: Callable[[Node], list[str]] = lambda node: []
    layouts: Mapping[int, tuple[str, Callable[[Value, Node], Value]]] | None = None
