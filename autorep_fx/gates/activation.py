"""The gated activation: what a gateable site becomes while its gates are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autorep_fx.gates.fitted import FittedActivation
from autorep_fx.gates.fused import Bodies, compiled_bodies, gate
from autorep_fx.gates.operation import Operation
from autorep_fx.polynomials import FitLimits
from autorep_fx.sites import Site

__all__ = ["GatedActivation"]

# Weight of one training batch in the running moments: the last dozen refreshed batches count.
_MOMENTUM = 0.2
_FALLBACKS: tuple[Literal["linear", "kept"] | None, ...] = (None, "linear", "kept")


class GatedActivation(FittedActivation):
    """An activation in which every unit (element, channel or the whole site) is kept or replaced.

    A kept unit computes the activation, a replaced one ``c0 + c1·x + c2·x²`` with coefficients per channel. The
    state of the gates is a buffer; scores move it through :meth:`update_state` with a hysteresis band.

    Args:
        site: The site, whose output has shape ``(N, *site.shape)``.
        function: The activation, of the input and of the parameter that it has, if any.
        granularity: ``element``, ``channel`` or ``site``.
        band: Hysteresis θ: a kept gate flips when its score is below −θ, a replaced one when it is above +θ.
        degree, c2_scale, limits, fit_arguments, parameter, identity: As for :class:`FittedActivation`.
        pinned: ``kept`` or ``replaced``: the state of every unit, which no score changes.
        own_allowed: Nominal comparisons that this site may keep, apart from the others; None for a common pot. A budget
            in bytes, messages or seconds settles it for sites that are to keep nothing or everything.
        like: A tensor whose device and dtype the parameters take.

    Attributes:
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
        super().__init__(
            site, function, degree=degree, c2_scale=c2_scale, limits=limits, fit_arguments=fit_arguments,
            identity=identity, parameter=parameter, like=like,
        )  # fmt: skip
        self.granularity = granularity
        self.band = band
        self.pinned = pinned
        self.own_allowed = own_allowed
        self.handler: Callable[[GatedActivation, Tensor], Tensor] | None = None
        self.soft = False
        self.compiled = False
        self.mode = "run"
        self.reach = 0.0
        shape = self._unit_shape()
        self.score = nn.Parameter(torch.ones(shape, device=like.device, dtype=like.dtype))
        self.kept: Tensor
        self.register_buffer("kept", torch.full(shape, pinned != "replaced", device=like.device))

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
        """The fallback, and what the site may keep of its own (-1 for a common pot): part of the state dict."""
        own = -1 if self.own_allowed is None else self.own_allowed
        return torch.tensor([_FALLBACKS.index(self.fallback), own], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore them."""
        fallback, own = state.tolist()
        self.fall_back(_FALLBACKS[fallback])
        self.own_allowed = None if own < 0 else own

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
