r"""The gated activation as one function, which saves nothing but its input for the backward pass.

With ``m`` the state of the gates, ``a`` the activation and ``p`` the polynomial, ``y = m·a(x) + (1 − m)·p(x)``. Given
``g = ∂L/∂y``, the sums over the batch :math:`S_k = \sum_n g x^k` and :math:`S_a = \sum_n g a(x)` are all that the
gradients of coefficients and scores need:
:math:`\partial L/\partial c_k = \sum (1 - m) S_k` over the positions of a channel, and
:math:`\partial L/\partial s = \mathrm{softplus}(s) \cdot (S_a - \sum_k c_k S_k)`, the straight-through estimator of
AutoReP (arXiv 2308.10134). Saving the activation and the polynomial as well, as the plain form does, takes three
times the memory.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from autorep_fx.gates.operation import Operation

__all__ = ["Bodies", "compiled_bodies", "gate", "gate_gradients"]


@dataclass(frozen=True)
class Bodies:
    """What a gate computes over the whole tensor, forward and backward.

    Attributes:
        activation: The activation, of the input and of its parameters, if it has any.
        axis: Channel axis of the input ``(N, *shape)``.
        traced: Whether ``torch.compile`` is to take the bodies over: it follows ``torch.func``, which outside of it
            does not go together with hooks on saved tensors.
    """

    activation: Callable[..., Tensor]
    axis: int
    traced: bool = False

    def forward(self, x: Tensor, kept: Tensor, coefficients: Tensor, *parameters: Tensor) -> Tensor:
        """``a(x)`` where kept, the polynomial elsewhere; computed in the wider of the dtypes, returned in that of x."""
        activation, polynomial = self.activation(x, *parameters), self._horner(x, coefficients).to(x.dtype)
        # Written into a tensor of x's layout: where() would take that of the state, and the layer before or after
        # would round differently, or convert.
        return torch.where(kept, activation, polynomial, out=torch.empty_like(x))

    def backward(
        self, g: Tensor, x: Tensor, kept: Tensor, coefficients: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Gradient of ``x``; the sums over the batch, ``(degree + 2, *shape)``; gradients of the parameters."""
        activation, (to_x, *to_parameters) = self._pulled(torch.where(kept, g, 0.0), x, *parameters)
        slope = self._horner(x, _derivative(coefficients))
        to_x = torch.where(kept, to_x, (g * slope).to(x.dtype), out=torch.empty_like(x))
        g = g.to(coefficients.dtype)
        power, sums = g, []
        for k in range(len(coefficients)):
            power = g if k == 0 else power * x
            sums.append(power.sum(0))
        return to_x, torch.stack([*sums, (g * activation).sum(0)]), tuple(to_parameters)

    def _pulled(self, g: Tensor, *tensors: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """The activation, and the gradients of all that it takes."""
        if self.traced:
            activation, pull = torch.func.vjp(self.activation, *tensors)  # type: ignore[misc]
            return activation, pull(g)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            activation = self.activation(*leaves)
        return activation.detach(), torch.autograd.grad(activation, leaves, g)

    def _horner(self, x: Tensor, coefficients: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = -1
        highest, *lower = [c.view(shape) for c in coefficients.flip(0)]
        result: Tensor = highest.expand(x.shape) if not lower else highest
        for coefficient in lower:
            result = result * x + coefficient
        return result


def _derivative(coefficients: Tensor) -> Tensor:
    """Coefficients ``(max(degree, 1), C)`` of the derivative."""
    if len(coefficients) == 1:
        return torch.zeros_like(coefficients)
    powers = torch.arange(1, len(coefficients), device=coefficients.device, dtype=coefficients.dtype)
    return coefficients[1:] * powers[:, None]


@functools.cache
def compiled_bodies(
    operation: Operation, axis: int, shape: tuple[int, ...]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward compiled by ``torch.compile``, shared by all gates of one activation and shape.

    Args:
        operation: The activation.
        axis: Channel axis of the input ``(N, *shape)``.
        shape: Of a sample; a code of its own per shape runs faster than one for all.
    """
    bodies = Bodies(operation, axis, traced=True)
    forward, backward = (torch.compile(_of_its_own(body), dynamic=False) for body in (bodies.forward, bodies.backward))
    return forward, backward


def _of_its_own(method: Any) -> Any:
    """The same method with a code object of its own.

    Dynamo counts compilations per code object and gives up after 8: a network with more shapes and batch sizes than
    that would run without compiled code, and say so in a warning at most.
    """
    function = method.__func__
    copied = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return types.MethodType(copied, method.__self__)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kept: Tensor, score: Tensor, coefficients: Tensor, axis: int,
        bodies: tuple[Callable[..., Tensor], Callable[..., Any]], *parameters: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, kept, score, coefficients, *parameters)
        ctx.axis, ctx.body = axis, bodies[1]
        return bodies[0](x, kept, coefficients, *parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, score, coefficients, *parameters = ctx.saved_tensors
        to_x, sums, to_parameters = ctx.body(gradients[0], x, kept, coefficients, *parameters)
        needed = ctx.needs_input_grad
        to_score, to_coefficients = gate_gradients(sums, kept, score, coefficients, ctx.axis, needed[2], needed[3])
        return to_x, None, to_score, to_coefficients, None, None, *to_parameters


def gate_gradients(
    sums: Tensor, kept: Tensor, score: Tensor, coefficients: Tensor, axis: int, of_score: bool, of_coefficients: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of scores and coefficients, where they are asked for, from the sums over the batch.

    Args:
        sums: ``(degree + 2, *shape)``, as :meth:`Bodies.backward` gives them.
        kept: State.
        score: Scores, of the shape of ``kept``.
        coefficients: ``(degree + 1, C)``.
        axis: Channel axis of the input ``(N, *shape)``.
        of_score: Whether the first is asked for.
        of_coefficients: Whether the second is.
    """
    *powers, activation = sums.unbind(0)
    to_score = to_coefficients = None
    if of_score:
        polynomial = torch.zeros_like(activation)
        for coefficient, power in zip(coefficients, powers, strict=True):
            polynomial = polynomial + coefficient.view(_per_channel(activation, axis)) * power
        to_score = (activation - polynomial).sum_to_size(score.shape).to(score.dtype) * F.softplus(score)
    if of_coefficients:
        replaced = torch.stack(powers) * (~kept).to(sums.dtype)
        others = [dim + 1 for dim in range(activation.dim()) if dim != axis - 1]
        to_coefficients = replaced.sum(others) if others else replaced
    return to_score, to_coefficients


def _per_channel(value: Tensor, axis: int) -> list[int]:
    shape = [1] * value.dim()
    shape[axis - 1] = -1
    return shape


def gate(
    x: Tensor, kept: Tensor, score: Tensor, coefficients: Tensor, axis: int,
    bodies: tuple[Callable[..., Tensor], Callable[..., Any]], *parameters: Tensor,
) -> Tensor:  # fmt: skip
    """The activation of ``x`` where kept, the polynomial elsewhere; the gradient reaches scores and coefficients.

    Args:
        x: ``(N, *shape)``.
        kept: Boolean state, broadcastable to ``shape``.
        score: Scores, of the shape of ``kept``.
        coefficients: ``(degree + 1, C)``, lowest power first.
        axis: Channel axis of ``x``.
        bodies: Forward and backward, as of :class:`Bodies` or :func:`compiled_bodies`.
        parameters: Tensors that the activation takes after ``x``.

    Returns:
        ``(N, *shape)``; where everything is kept, exactly the activation with exactly its gradient.
    """
    result: Tensor = _Gate.apply(x, kept, score, coefficients, axis, bodies, *parameters)
    return result
