"""An activation, and the polynomial per channel that can replace it: fitted to what the activation gets."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autorep_fx.gates.collective import means_of_all, range_of_all
from autorep_fx.gates.operation import Operation
from autorep_fx.polynomials import FitLimits
from autorep_fx.polynomials.site_fit import fit_site
from autorep_fx.sites import Site

__all__ = ["FittedActivation"]


class FittedActivation(nn.Module):
    """An activation of ``(N, *site.shape)`` and the polynomial ``c0 + c1·x + c2·x²`` with coefficients per channel.

    Args:
        site: The site.
        function: The activation, of the input and of the parameter that it has, if any.
        degree: Degree of the polynomial, 0 to 2.
        c2_scale: The quadratic coefficient is this times its parameter, so that it trains slowly.
        limits: Bounds of the fits.
        fit_arguments: Scalar arguments of the activation, such as the bounds of a clip.
        identity: Replace by x itself instead of a fit, as SNL does.
        parameter: The parameter of the activation, such as the slopes of a PReLU. The model owns and trains it: calls
            bring its value, and the last one is what fits go by.
        like: A tensor whose device and dtype the parameters take.

    Attributes:
        fallback: What calibration had to do: ``linear`` for fits of degree 1, or ``kept`` for good.
        fitted: The last fit, ``(degree + 1, C)``; the coefficients are that and what was trained on top.
    """

    def __init__(
        self, site: Site, function: Operation, *, degree: int, c2_scale: float, limits: FitLimits,
        fit_arguments: tuple[float, ...], identity: bool, parameter: Tensor | None, like: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        self.site = site
        self.activation = function
        self.degree = degree
        self.c2_scale = c2_scale
        self.limits = limits
        self.fit_arguments = fit_arguments
        self.identity = identity
        self.fallback: Literal["linear", "kept"] | None = None
        self.parameter: Tensor | None
        self.register_buffer("parameter", None if parameter is None else parameter.detach().clone(), persistent=False)
        shape = (degree + 1, site.channels)
        self.raw_coefficients = nn.Parameter(torch.zeros(shape, device=like.device, dtype=like.dtype))
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros(shape, device=like.device, dtype=torch.float64))
        self.mean: Tensor
        self.std: Tensor
        self.input_range: Tensor
        self._make_moments(like.device)
        self.refit()

    def _make_moments(self, device: torch.device) -> None:
        """Register the moments that fits are made from: those of N(0, 1) until others are measured."""
        options: dict[str, Any] = {"device": device, "dtype": torch.float64}
        self.register_buffer("mean", torch.zeros(self.site.channels, **options))
        self.register_buffer("std", torch.ones(self.site.channels, **options))
        self.register_buffer("input_range", torch.full((2,), torch.nan, **options))

    @property
    def coefficients(self) -> Tensor:
        """``(degree + 1, C)``, lowest power first."""
        if self.degree < 2:
            return self.raw_coefficients
        return torch.cat([self.raw_coefficients[:2], self.raw_coefficients[2:] * self.c2_scale])

    def set_coefficients(self, values: Tensor) -> None:
        """Set the coefficients, ``(degree + 1, C)``, lowest power first."""
        values = values.to(self.raw_coefficients)
        if self.degree == 2:
            values = torch.cat([values[:2], values[2:] / self.c2_scale])
        with torch.no_grad():
            self.raw_coefficients.copy_(values)

    def polynomial(self, x: Tensor) -> Tensor:
        """The polynomial of every element of ``x`` ``(N, *shape)``, by Horner's rule."""
        shape = [1] * len(self.site.shape)
        shape[self.site.channel_axis] = -1
        highest, *lower = [c.view(shape) for c in self.coefficients.flip(0)]
        result: Tensor = highest.expand(x.shape) if not lower else highest
        for coefficient in lower:
            result = result * x + coefficient
        return result

    def function(self, x: Tensor, channel: int | None = None) -> Tensor:
        """The activation as the last call knew it, of ``x`` ``(N, *shape)``, or of values of one channel."""
        if self.parameter is None:
            result: Tensor = self.activation(x)
            return result
        parameter = self.parameter if channel is None or self.parameter.numel() == 1 else self.parameter[[channel]]
        result = self.activation(x, parameter.to(x))
        return result

    @torch.no_grad()
    def observe(self, x: Tensor, momentum: float = 1.0) -> None:
        """Record mean and standard deviation of the input per channel, and its range where the past is forgotten.

        A range that followed the training would hold the very batch that a loss explodes on.

        Args:
            x: ``(N, *shape)``.
            momentum: Weight of this batch against what was recorded before; 1 forgets the past.
        """
        channels = x.detach().transpose(0, self.site.channel_axis + 1).flatten(1).double()
        mean, square = means_of_all([channels.mean(1), channels.square().mean(1)], weight=channels.shape[1])
        square = torch.lerp(self.mean.square() + self.std.square(), square, momentum)
        self.mean.lerp_(mean, momentum)
        self.std.copy_((square - self.mean.square()).clamp(min=0).sqrt())
        if momentum == 1:
            self.input_range.copy_(range_of_all(channels))

    @property
    def floored_std(self) -> Tensor:
        """Standard deviation per channel ``(C,)`` with the floor of the fits; 1 where all inputs are constant."""
        scale = self.std.square().mean().sqrt()
        return torch.where(scale > 0, torch.maximum(self.std, self.limits.relative_floor * scale), 1.0)

    @torch.no_grad()
    def _reach(self, x: Tensor) -> float:
        """Largest distance of an input from its channel's mean, in (floored) standard deviations."""
        channels = x.transpose(0, self.site.channel_axis + 1).flatten(1).double()
        return float(((channels - self.mean[:, None]).abs() / self.floored_std[:, None]).max())

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the polynomial to the recorded distribution, or make it the identity."""
        self.fitted.copy_(self._fit())
        self.set_coefficients(self.fitted)

    # Fits are NumPy's, and a compiler would begin anew with every number in them.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def follow(self) -> None:
        """Move the polynomial as its fit moves with the recorded distribution: what was trained on top stays."""
        before = self.fitted.clone()
        self.fitted.copy_(self._fit())
        self.set_coefficients(self.coefficients.double() + self.fitted - before)

    def _fit(self) -> Tensor:
        """Coefficients ``(degree + 1, C)`` in float64."""
        if self.identity:
            return torch.eye(self.degree + 1)[min(1, self.degree)][:, None].expand(-1, self.site.channels)
        coefficients = fit_site(
            self.site.kind, self._fit_arguments(), self.function, self.mean.cpu().numpy(), self.std.cpu().numpy(),
            self.degree if self.fallback is None else min(self.degree, 1), self.limits,
        )  # fmt: skip
        padding = self.degree + 1 - len(coefficients)
        return torch.from_numpy(np.pad(coefficients, ((0, padding), (0, 0))))

    def _fit_arguments(self) -> tuple[Any, ...]:
        """Scalar arguments, or the parameter with one value per channel."""
        if self.parameter is None:
            return self.fit_arguments
        return (self.parameter.double().expand(self.site.channels).cpu().numpy(),)
