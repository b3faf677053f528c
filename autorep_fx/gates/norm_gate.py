r"""Batch norm, a sum and a gate as one function that keeps the norm's input alone for the backward pass.

A gate saves its input, which no other operation needs: 41 % more than plain ReLU on ResNet-18. That input is cheap to
compute again from what the norm saves anyway: :math:`x = \gamma (z - \mu)/\sigma + \beta + r`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autorep_fx.gates.activation import GatedActivation
from autorep_fx.gates.fused import gate_gradients

__all__ = ["norm_then_gate"]

aten = torch.ops.aten


class _NormGate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, other: Tensor | None, gate: GatedActivation, score: Tensor,
        coefficients: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        x, batch_mean, inverse = aten.native_batch_norm.default(z, weight, bias, mean, var, True, momentum, eps)
        if other is not None:
            x = x + other
        ctx.save_for_backward(z, weight, bias, other, score, coefficients, batch_mean, inverse, gate.kept)
        ctx.gate, ctx.eps = gate, eps
        result: Tensor = gate.bodies[0](x, gate.kept, coefficients)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, bias, other, score, coefficients, mean, inverse, kept = ctx.saved_tensors
        scale = (inverse * weight).to(z.dtype)
        shape = [1, -1] + [1] * (z.dim() - 2)
        x = torch.addcmul((bias - mean * scale).to(z.dtype).view(shape), z, scale.view(shape))
        if other is not None:
            x = x.add_(other)
        to_x, sums, _ = ctx.gate.bodies[1](gradients[0], x, kept, coefficients)
        needed = ctx.needs_input_grad
        to_score, to_coefficients = gate_gradients(sums, kept, score, coefficients, 1, needed[5], needed[6])
        to_z, to_weight, to_bias = aten.native_batch_norm_backward.default(
            to_x, z, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        return (
            to_z,
            to_weight,
            to_bias,
            to_x if other is not None else None,
            None,
            to_score,
            to_coefficients,
            *[None] * 4,
        )


def norm_then_gate(
    z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training: bool, momentum: float, eps: float,
    other: Tensor | None, gate: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """``gate(batch_norm(z) + other)``; in training the input of the gate is not kept but computed again.

    Args:
        z: ``(N, C, ...)``.
        weight: ``(C,)``.
        bias: ``(C,)``.
        mean: ``(C,)`` running mean, updated in training.
        var: ``(C,)`` running variance, updated in training.
        training: Whether to use and track batch statistics.
        momentum: Of the running statistics.
        eps: Added to the variance.
        other: ``(N, C, ...)`` or None.
        gate: The gated activation.
    """
    if training and isinstance(gate, GatedActivation) and gate.is_plain:
        result: Tensor = _NormGate.apply(
            z, weight, bias, other, gate, gate.score, gate.coefficients, mean, var, momentum, eps
        )
        return result
    x = aten.batch_norm.default(z, weight, bias, mean, var, training, momentum, eps, True)
    return gate(x if other is None else x + other)
