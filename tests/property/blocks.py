"""Blocks of random networks: what each is, computes, and compares.

A block is plain data. ``shape`` and ``sites`` say by formulas of their own what comes out and what compares, in the
order of execution; ``build`` makes the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from property.activations import Activation, ExpectedSite, Made
from property.layers import Convolution, Norm, Shape

__all__ = [
    "Block", "Branches", "ConvBlock", "Gated", "InPlaceResidual", "NoGrad", "PreActivation", "Residual", "Run",
    "SliceWrite",
]  # fmt: skip


class Run(nn.Module):
    """Modules by name, and a function of them and of an input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@dataclass(frozen=True)
class Block:
    """One block; by default it keeps the shape and compares nothing."""

    def shape(self, shape: Shape) -> Shape:
        """Shape of the output for one sample."""
        return shape

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        """What compares, in the order of execution."""
        return []

    def build(self, shape: Shape, made: Made) -> nn.Module:
        """The module for inputs of ``shape``; ``made`` holds what blocks share."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConvBlock(Block):
    """Convolution, norm and activation, the last two if any."""

    convolution: Convolution
    norm: Norm | None
    activation: Activation | None

    def shape(self, shape: Shape) -> Shape:
        return self.convolution.shape(shape)

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [] if self.activation is None else [self.activation.site(*self.shape(shape))]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        out = self.shape(shape)
        norm = nn.Identity() if self.norm is None else self.norm.build(out)
        act = nn.Identity() if self.activation is None else self.activation.build(made, out[0])
        return Run(lambda m, x: m.act(m.norm(m.conv(x))), conv=self.convolution.build(shape), norm=norm, act=act)


@dataclass(frozen=True)
class Residual(Block):
    """Two convolutions and a sum: ``outer(norm(conv(inner(norm(conv(x))))) + x)``."""

    norm: Norm
    inner: Activation
    outer: Activation
    in_place: bool

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [self.inner.site(*shape), self.outer.site(*shape)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            y = m.norm2(m.conv2(m.inner(m.norm1(m.conv1(x)))))
            if self.in_place:
                y += x
            else:
                y = y + x
            return m.outer(y)

        conv = Convolution(shape[0])
        return Run(
            forward, conv1=conv.build(shape), norm1=self.norm.build(shape), conv2=conv.build(shape),
            norm2=self.norm.build(shape), inner=self.inner.build(made, shape[0]),
            outer=self.outer.build(made, shape[0]),
        )  # fmt: skip


@dataclass(frozen=True)
class InPlaceResidual(Block):
    """``y = conv(x); conv(activation(y)) + y``: in place, the sum takes what the activation wrote into ``y``."""

    activation: Activation

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [self.activation.site(*shape)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            y = m.conv1(x)
            return m.conv2(m.act(y)) + y

        conv = Convolution(shape[0])
        return Run(forward, conv1=conv.build(shape), conv2=conv.build(shape), act=self.activation.build(made, shape[0]))


@dataclass(frozen=True)
class PreActivation(Block):
    """``x + conv(activation(norm(x)))``."""

    norm: Norm
    activation: Activation

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [self.activation.site(*shape)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        return Run(
            lambda m, x: x + m.conv(m.act(m.norm(x))), conv=Convolution(shape[0]).build(shape),
            norm=self.norm.build(shape), act=self.activation.build(made, shape[0]),
        )  # fmt: skip


@dataclass(frozen=True)
class Branches(Block):
    """A concatenation of activations, each of a convolution of its own, or all of one value."""

    activations: tuple[Activation, ...]
    one_value: bool

    def shape(self, shape: Shape) -> Shape:
        return 2 * len(self.activations), *shape[1:]

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [a.site(2, *shape[1:]) for a in self.activations]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            if self.one_value:
                y = m.convs[0](x)
                return torch.cat([act(y) for act in m.acts], 1)
            return torch.cat([act(conv(x)) for act, conv in zip(m.acts, m.convs, strict=True)], 1)

        plain = [a.not_in_place() if self.one_value else a for a in self.activations]
        acts = [a.build(made, 2) for a in plain]
        listed = nn.ModuleList(a if isinstance(a, nn.Module) else Run(lambda m, x, a=a: a(x)) for a in acts)
        convs = nn.ModuleList(Convolution(2, 1).build(shape) for _ in range(1 if self.one_value else len(acts)))
        return Run(forward, convs=convs, acts=listed)


@dataclass(frozen=True)
class Gated(Block):
    """Squeeze and excitation: ``x · gate(conv(activation(conv(mean(x)))))``."""

    activation: Activation
    gate: Activation
    pooled: bool

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [self.activation.site(4, 1, 1), self.gate.site(shape[0], 1, 1)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            s = nn.functional.adaptive_avg_pool2d(x, 1) if self.pooled else x.mean((2, 3), keepdim=True)
            return x * m.gate(m.rise(m.act(m.fall(s))))

        return Run(
            forward, fall=nn.Conv2d(shape[0], 4, 1), rise=nn.Conv2d(4, shape[0], 1),
            act=self.activation.build(made, 4), gate=self.gate.build(made, shape[0]),
        )  # fmt: skip


@dataclass(frozen=True)
class SliceWrite(Block):
    """A convolution whose first channels are written in place.

    ``operation`` says how: ``assign``, ``scale`` and ``add`` through an index, ``method`` by a method of the view.
    """

    activation: Activation
    operation: str

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        half = (shape[0] + 1) // 2 if self.operation == "assign" else shape[0]
        return [self.activation.site(half, *shape[1:])]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        half = (shape[0] + 1) // 2

        def forward(m: Any, x: Tensor) -> Tensor:
            y = m.conv(x)
            if self.operation == "assign":
                y[:, :half] = m.act(y[:, :half] * 2.0)
                return y
            if self.operation == "scale":
                y[:, :half] *= 0.5
            elif self.operation == "method":
                y[:, :half].mul_(0.5)
            else:
                y[:, 0] += 1.0
            return m.act(y)

        act = self.activation.build(made, self.sites(shape)[0].channels)
        return Run(forward, conv=Convolution(shape[0], 1).build(shape), act=act)


@dataclass(frozen=True)
class NoGrad(Block):
    """A branch that is computed without gradients, beside the input."""

    norm: Norm
    activation: Activation

    def shape(self, shape: Shape) -> Shape:
        return shape[0] + 2, *shape[1:]

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [self.activation.site(2, *shape[1:])]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = m.act(m.norm(m.conv(x)))
            return torch.cat([x, y], 1)

        return Run(
            forward, conv=Convolution(2).build(shape), norm=self.norm.build((2, *shape[1:])),
            act=self.activation.build(made, 2),
        )  # fmt: skip
