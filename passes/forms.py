"""In what form the graph stores a value: the channels of the true value are scaled and shifted ones of the stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["FORM_KEY", "NOTES_KEY", "Form", "GateForms", "along", "note", "same_scale"]

#: The key under which the call of a gate carries the :class:`GateForms` that its neighbours agreed on.
FORM_KEY = "forms"
#: The key under which a module carries what its lowering could not do, and why.
NOTES_KEY = "lowering_notes"
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Form:
    """``true = scale · stored + shift`` per channel.

    Attributes:
        axis: Axis of the channels, the batch being axis 0.
        scale: ``(C,)``, float64.
        shift: ``(C,)``, float64.
    """

    axis: int
    scale: Tensor
    shift: Tensor

    @classmethod
    def identity(cls, axis: int, channels: int) -> Form:
        """Stored as it is."""
        return cls(axis, torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))

    @property
    def is_identity(self) -> bool:
        """Whether what is stored is the true value."""
        return bool((self.scale == 1).all()) and not bool(self.shift.any())

    def then(self, factor: Tensor | float, addend: Tensor | float) -> Form:
        """The form of ``factor · true + addend``, computed by doing nothing."""
        return Form(self.axis, self.scale * factor, self.shift * factor + addend)

    def part(self, start: int, stop: int) -> Form:
        """That of a stretch of the channels."""
        return Form(self.axis, self.scale[start:stop], self.shift[start:stop])


@dataclass(frozen=True)
class GateForms:
    """The forms in which a gate finds its input and leaves its output."""

    given: Form
    made: Form


def along(values: Tensor, axis: int, rank: int) -> Tensor:
    """``(C,)`` in the shape that broadcasts along ``axis`` of a tensor with ``rank`` axes, the batch left out."""
    return values.reshape([-1 if at == axis else 1 for at in range(1, rank)])


def same_scale(one: Tensor, other: Tensor) -> Tensor:
    """Where two scales are equal but for the rounding of float64."""
    return (one - other).abs() <= _ROUNDING * other.abs()


def note(module: fx.GraphModule, subject: str, reason: str) -> None:
    """Record what could not be lowered as wanted, once."""
    notes: dict[str, dict[str, Any]] = module.meta.setdefault(NOTES_KEY, {})
    notes.setdefault(reason, {})[subject] = None
