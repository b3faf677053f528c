r"""Mixing kept and replaced elements, with a straight-through gradient to the scores.

Forward uses the binary state ``m`` of the gates: ``y = m·a + (1 − m)·p``. Backward treats it as if it moved with
the score: :math:`\partial L/\partial s = \partial L/\partial m \cdot \mathrm{softplus}(s)` (AutoReP, arXiv
2308.10134).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["binary_state", "mix"]


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, polynomial: Tensor, kept: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(activation, polynomial, kept, score)
        return torch.where(kept, activation, polynomial)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = gradients
        activation, polynomial, kept, score = ctx.saved_tensors
        to_score = None
        if ctx.needs_input_grad[3]:
            influence = gradient * (activation - polynomial)
            to_score = influence.sum_to_size(score.shape) * F.softplus(score)
        # masked_fill keeps the strides of the gradient, where() may not: the layer before would round differently.
        return gradient.masked_fill(~kept, 0), gradient.masked_fill(kept, 0), None, to_score


def mix(activation: Tensor, polynomial: Tensor, kept: Tensor, score: Tensor) -> Tensor:
    """``activation`` where kept, ``polynomial`` elsewhere; the gradient reaches the scores.

    Args:
        activation: ``(N, *shape)``.
        polynomial: ``(N, *shape)``.
        kept: Boolean, broadcastable to ``shape``.
        score: Scores, of the shape of ``kept``.

    Returns:
        ``(N, *shape)``; where everything is kept, exactly ``activation`` with exactly its gradient.
    """
    result: Tensor = _Mix.apply(activation, polynomial, kept, score)
    return result


class _BinaryState(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        return kept.to(score.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = gradients
        [score] = ctx.saved_tensors
        return gradient * F.softplus(score), None


def binary_state(score: Tensor, kept: Tensor) -> Tensor:
    """The state ``kept`` as numbers 0 and 1, with the straight-through gradient to ``score``."""
    result: Tensor = _BinaryState.apply(score, kept)
    return result
