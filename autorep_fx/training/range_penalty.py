r"""The range penalty: inputs of replaced units far from what their polynomials were fitted on cost.

A quadratic squares an outlier, the next site squares that again, and one sample spoils the statistics of its whole
batch. With :math:`z = (x - \mu) / \sigma` by the moments that a site's fit goes by, the penalty is
:math:`\sum \max(0, |z| - k)^2` over the replaced elements of a sample, as a mean over the batch. PILLAR (Dhyani et al.,
USENIX Security 2024) regularises with a power of the input in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autorep_fx.gates import GatedActivation, GatedPool

__all__ = ["WIDTH", "WatchedRanges", "range_excess"]

#: Standard deviations from the mean that cost nothing: of a normal distribution 6 in 100,000 values are beyond 4.
WIDTH = 4.0


class _Excess(torch.autograd.Function):
    """Saves the input alone, which the gate saves too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        ctx.save_for_backward(x, kept, mean, std)
        return _beyond(x, kept, mean, std).square().sum() / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, mean, std = ctx.saved_tensors
        slope = _beyond(x, kept, mean, std) / std
        return (slope * (2 * gradients[0] / len(x))).to(x.dtype), None, None, None


def _beyond(x: Tensor, kept: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """How far replaced elements are beyond the range, with sign, in standard deviations."""
    z = (x.to(std.dtype) - mean) / std
    return (z - z.clamp(-WIDTH, WIDTH)).masked_fill_(kept, 0)


def range_excess(gate: GatedActivation, x: Tensor) -> Tensor:
    """The penalty of a site's input, a scalar.

    Args:
        gate: The site's gate, calibrated.
        x: ``(N, *gate.site.shape)``.
    """
    shape = [1] * x.dim()
    shape[gate.site.channel_axis + 1] = -1
    mean, std = (value.to(torch.float32).view(shape) for value in (gate.mean, gate.floored_std))
    result: Tensor = _Excess.apply(x, gate.kept, mean, std)
    return result


class WatchedRanges:
    """Computes the penalty of every site of a model that replaces something, while it is entered.

    Args:
        gates: The gates by site name.

    Attributes:
        excess: Site name → penalty of the last call.
    """

    def __init__(self, gates: Mapping[str, GatedActivation]) -> None:
        self.excess: dict[str, Tensor] = {}
        self._gates = gates
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        """Begin to watch."""
        for name, gate in self._gates.items():
            if not isinstance(gate, GatedPool):
                self._handles.append(gate.register_forward_pre_hook(self._watcher(name)))
        return self

    def _watcher(self, name: str) -> Callable[..., None]:
        def watch(gate: GatedActivation, args: tuple[Any, ...]) -> None:
            self.excess[name] = range_excess(gate, args[0])

        return watch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
