"""The gated activation: what a gateable site becomes while its gates are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autorep_fx.gates.collective import means_of_all, range_of_all
from autorep_fx.gates.fused import Bodies, compiled_bodies, gate
from autorep_fx.gates.operation import Operation
from autorep_fx.polynomials import FitLimits
from autorep_fx.polynomials.site_fit import fit_site
from autorep_fx.sites import Site

__all__ = ["GatedActivation"]

# Weight of one training batch in the running moments: the last dozen refreshed batches count.
_MOMENTUM = 0.2
_FALLBACKS: tuple[Literal["linear", "kept"] | None, ...] = (None, "linear", "kept")


class GatedActivation(nn.Module):
    """An activation in which every unit (element, channel or the whole site) is kept or replaced.

    A kept unit computes the activation, a replaced one ``c0 + c1·x + c2·x²`` with coefficients per channel. The
    state of the gates is a buffer; scores move it through :meth:`update_state` with a hysteresis band.

    Args:
        site: The site, whose output has shape ``(N, *site.shape)``.
        function: The activation, of the input and of the parameter that it has, if any.
        granularity: ``element``, ``channel`` or ``site``.
        degree: Degree of the polynomial, 0 to 2.
        band: Hysteresis θ: a kept gate flips when its score is below −θ, a replaced one when it is above +θ.
        c2_scale: The quadratic coefficient is this times its parameter, so that it trains slowly.
        limits: Bounds of the fits.
        fit_arguments: Scalar arguments of the activation, such as the bounds of a clip.
        identity: Replace by x itself instead of a fit, as SNL does.
        parameter: The parameter of the activation, such as the slopes of a PReLU. The model owns and trains it: calls
            bring its value, and the last one is what fits go by.
        pinned: ``kept`` or ``replaced``: the state of every unit, which no score changes.
        own_allowed: Nominal comparisons that this site may keep, apart from the others; None for a common pot.
        like: A tensor whose device and dtype the parameters take.

    Attributes:
        fallback: What calibration had to do: ``linear`` for fits of degree 1, or ``kept`` for good.
        handler: What takes over the forward pass, for the time of a calibration.
        soft: Mix by the scores themselves, as SNL does while it trains, instead of by the state.
        compiled: Run bodies that ``torch.compile`` made.
    """

    def __init__(
        self, site: Site, function: Operation, *, granularity: str, degree: int, band: float,
        c2_scale: float, limits: FitLimits, fit_arguments: tuple[float, ...], like: Tensor,
        parameter: Tensor | None = None, identity: bool = False,
        pinned: Literal["kept", "replaced"] | None = None, own_allowed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.site = site
        self.activation = function
        self.granularity = granularity
        self.degree = degree
        self.band = band
        self.c2_scale = c2_scale
        self.limits = limits
        self.fit_arguments = fit_arguments
        self.pinned = pinned
        self.own_allowed = own_allowed
        self.fallback: Literal["linear", "kept"] | None = None
        self.handler: Callable[[GatedActivation, Tensor], Tensor] | None = None
        self.identity = identity
        self.soft = False
        self.compiled = False
        self.mode = "run"
        self.reach = 0.0
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        shape = self._unit_shape()
        self.score = nn.Parameter(torch.ones(shape, **options))
        self.parameter: Tensor | None
        self.register_buffer("parameter", None if parameter is None else parameter.detach().clone(), persistent=False)
        self.raw_coefficients = nn.Parameter(torch.zeros(degree + 1, site.channels, **options))
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros(degree + 1, site.channels, device=like.device, dtype=torch.float64))
        self.kept: Tensor
        self.register_buffer("kept", torch.full(shape, pinned != "replaced", device=like.device))
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

    def _unit_shape(self) -> tuple[int, ...]:
        if self.granularity == "element":
            return self.site.shape
        if self.granularity == "channel":
            return tuple(size if i == self.site.channel_axis else 1 for i, size in enumerate(self.site.shape))
        return (1,) * len(self.site.shape)

    @property
    def unit_cost(self) -> int:
        """Nominal comparisons that one unit costs."""
        return self.site.comparisons // self.kept.numel()

    @property
    def kept_comparisons(self) -> int:
        """Nominal comparisons that the kept units cost for one sample."""
        return int(self.kept.sum()) * self.unit_cost

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

    def forward(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Activation or polynomial of ``x`` ``(N, *shape)`` by the state of the gates."""
        if self.parameter is not None:
            self.parameter.copy_(parameters[0].detach())
        if self.handler is not None:
            return self.handler(self, x)
        if self.mode == "measure":
            self.observe(x)
            self.reach = self._reach(x)
        elif self.mode == "follow":
            self.observe(x, momentum=_MOMENTUM)
            self.follow()
        return self._mixed(x, *parameters)

    def _mixed(self, x: Tensor, *parameters: Tensor) -> Tensor:
        if self.soft:
            return torch.lerp(self.polynomial(x), self.activation(x, *parameters), self.score)
        axis = self.site.channel_axis + 1
        return gate(x, self.kept, self.score, self.coefficients, axis, self.bodies, *parameters)

    @property
    def bodies(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What it computes over the whole tensor, forward and backward."""
        axis = self.site.channel_axis + 1
        if self.compiled:
            return compiled_bodies(self.activation, axis, self.site.shape)
        eager = Bodies(self.activation, axis)
        return eager.forward, eager.backward

    @property
    def is_plain(self) -> bool:
        """Whether a call does nothing but mix by the state."""
        return self.handler is None and self.mode == "run" and not self.soft and self.parameter is None

    def fall_back(self, fallback: Literal["linear", "kept"] | None) -> None:
        """Fit with degree 1 from now on, keep the activation for good, or neither."""
        if self.fallback == "kept":
            self.pinned = None
        if fallback == "kept":
            self.pinned = "kept"
            self.kept.fill_(True)
        self.fallback = fallback

    def get_extra_state(self) -> Tensor:
        """The fallback: part of the state dict."""
        return torch.tensor(_FALLBACKS.index(self.fallback), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.fall_back(_FALLBACKS[int(state)])

    @torch.no_grad()
    def observe(self, x: Tensor, momentum: float = 1.0) -> None:
        """Record mean, standard deviation and range of the input per channel.

        Args:
            x: ``(N, *shape)``.
            momentum: Weight of this batch against what was recorded before; 1 forgets the past.
        """
        channels = x.detach().transpose(0, self.site.channel_axis + 1).flatten(1).double()
        mean, square = means_of_all([channels.mean(1), channels.square().mean(1)], weight=channels.shape[1])
        square = torch.lerp(self.mean.square() + self.std.square(), square, momentum)
        self.mean.lerp_(mean, momentum)
        self.std.copy_((square - self.mean.square()).clamp(min=0).sqrt())
        self.input_range.copy_(range_of_all(channels))

    @torch.no_grad()
    def _reach(self, x: Tensor) -> float:
        """Largest distance of an input from its channel's mean, in (floored) standard deviations."""
        channels = x.transpose(0, self.site.channel_axis + 1).flatten(1).double()
        floored = torch.from_numpy(self.limits.floored(self.std.cpu().numpy())).to(channels)
        return float(((channels - self.mean[:, None]).abs() / floored[:, None]).max())

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the polynomial to the recorded distribution, or make it the identity."""
        self.fitted.copy_(self._fit())
        self.set_coefficients(self.fitted)

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

    @torch.no_grad()
    def update_state(self) -> None:
        """Flip kept gates whose score is below −band, and replaced ones whose score is above +band."""
        if self.pinned is not None:
            return
        threshold = torch.where(self.kept, -self.band, self.band)
        self.kept.copy_(torch.where(self.kept, self.score >= threshold, self.score > threshold))

    def extra_repr(self) -> str:
        """Summary for ``print(module)``."""
        return f"{self.site.name}, {self.site.kind}, {self.granularity}, degree {self.degree}"
