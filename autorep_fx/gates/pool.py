"""The gated pool: max pooling that is kept, or replaced by an affine map of the average, per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autorep_fx.gates.activation import GatedActivation
from autorep_fx.gates.collective import means_of_all
from autorep_fx.gates.operation import Operation
from autorep_fx.gates.straight_through import mix
from autorep_fx.sites import Site

__all__ = ["GatedPool"]


class GatedPool(GatedActivation):
    r"""Max pooling in which every channel (or the whole site) is kept or replaced.

    A replaced channel computes ``c0 + c1·a`` with ``a`` the average over the same windows. The least-squares
    fit to the maximum ``m`` is :math:`c_1 = \mathrm{cov}(a, m)/\mathrm{var}(a)`, :math:`c_0 = E[m] - c_1 E[a]`, on
    measured moments; before any are measured it is the average itself.

    Args:
        site: The site, whose output has shape ``(N, C, ...)``.
        function: The max pooling.
        average: The average pooling over the windows of the maximum.
        options: As for :class:`GatedActivation`; the degree is 1.
    """

    def __init__(self, site: Site, function: Operation, *, average: Operation, **options: Any) -> None:
        super().__init__(site, function, **{**options, "degree": 1})
        self.average = average

    def _make_moments(self, device: torch.device) -> None:
        super()._make_moments(device)
        # Mean of the maximum, and of average times maximum: as if the maximum were the average.
        self.moments: Tensor
        self.register_buffer("moments", torch.stack([self.mean, self.std.square()]))

    def _mixed(self, x: Tensor, *parameters: Tensor) -> Tensor:
        if self.soft:
            return super()._mixed(x, *parameters)
        return mix(self.activation(x, *parameters), self.polynomial(x), self.kept, self.score)

    def polynomial(self, x: Tensor) -> Tensor:
        """``c0 + c1·average`` of ``x`` ``(N, C, ...)``."""
        return super().polynomial(self.average(x))

    @torch.no_grad()
    def observe(self, x: Tensor, momentum: float = 1.0) -> None:
        """Record the moments of average and maximum; the range is that of the average."""
        average = self.average(x.detach())
        super().observe(average, momentum)
        rows, largest = (value.transpose(0, 1).flatten(1).double() for value in (average, self.function(x.detach())))
        found = means_of_all([largest.mean(1), (rows * largest).mean(1)], weight=rows.shape[1])
        self.moments.lerp_(torch.stack(found), momentum)

    def _reach(self, x: Tensor) -> float:
        return super()._reach(self.average(x))

    def _fit(self) -> Tensor:
        """The affine map that fits the recorded moments; for a channel without variance the mean of its maximum."""
        mean, product = self.moments
        variance = self.std.square()
        slope = torch.where(variance > 0, (product - self.mean * mean) / variance.clamp(min=1e-30), 0.0)
        return torch.stack([mean - slope * self.mean, slope])
