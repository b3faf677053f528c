"""Blocks of random networks that pool, drop, mix tokens, split channels, or are an activation alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from property.activations import Activation, ExpectedSite, Made
from property.blocks import Block, Run
from property.layers import Convolution, Shape

__all__ = ["Bare", "Dropout", "Glu", "Pool", "Split", "Tokens", "Upsample"]


@dataclass(frozen=True)
class Pool(Block):
    """Pooling: ``max``, ``avg``, ``adaptive_max`` or ``adaptive_avg``; the adaptive ones halve an even side."""

    kind: str
    kernel: int
    stride: int
    padded: bool

    @property
    def _is_adaptive(self) -> bool:
        return self.kind.startswith("adaptive")

    def _geometry(self, side: int) -> tuple[int, int]:
        """Kernel and padding."""
        kernel = min(self.kernel, side)
        return kernel, kernel // 2 if self.padded else 0

    def shape(self, shape: Shape) -> Shape:
        channels, side, _ = shape
        kernel, padding = self._geometry(side)
        out = side // 2 if side % 2 == 0 else 1
        if not self._is_adaptive:
            out = (side + 2 * padding - kernel) // self.stride + 1
        return channels, out, out

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        out = self.shape(shape)
        window = (shape[1] // out[1]) ** 2 if self._is_adaptive else self._geometry(shape[1])[0] ** 2
        if "max" not in self.kind or window == 1:
            return []
        return [ExpectedSite(f"{self.kind}_pool2d", out, out[0], window - 1, fixed=True)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        if self._is_adaptive:
            kind = nn.AdaptiveMaxPool2d if self.kind == "adaptive_max" else nn.AdaptiveAvgPool2d
            return kind(self.shape(shape)[1])
        kernel, padding = self._geometry(shape[1])
        return (nn.MaxPool2d if self.kind == "max" else nn.AvgPool2d)(kernel, self.stride, padding)


@dataclass(frozen=True)
class Upsample(Block):
    """Twice the side, where it is small."""

    mode: str

    def shape(self, shape: Shape) -> Shape:
        factor = 2 if shape[1] <= 4 else 1
        return shape[0], factor * shape[1], factor * shape[2]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        factor = 2 if shape[1] <= 4 else 1
        return Run(lambda m, x: F.interpolate(x, scale_factor=factor, mode=self.mode))


@dataclass(frozen=True)
class Dropout(Block):
    """Dropout of elements or of channels, as a module or as a function."""

    p: float
    form: str

    def build(self, shape: Shape, made: Made) -> nn.Module:
        if self.form == "function":
            return Run(lambda m, x: F.dropout(x, self.p, m.training))
        return (nn.Dropout2d if self.form == "channels" else nn.Dropout)(self.p)


@dataclass(frozen=True)
class Bare(Block):
    """An activation of whatever comes before."""

    activation: Activation

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [self.activation.site(*shape)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        return Run(lambda m, x: m.act(x), act=self.activation.not_in_place().build(made, shape[0]))


@dataclass(frozen=True)
class Glu(Block):
    """A convolution to twice the channels, and a gated linear unit."""

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [ExpectedSite("sigmoid", shape, shape[0], 1)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        return Run(lambda m, x: F.glu(m.conv(x), 1), conv=Convolution(2 * shape[0], 1).build(shape))


@dataclass(frozen=True)
class Tokens(Block):
    """Pixels as tokens with the channels last: layer norm, attention by a softmax if wanted, and two linear layers."""

    hidden: int
    activation: Activation
    attention: bool

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        tokens = shape[1] * shape[2]
        softmax = [ExpectedSite("softmax", (tokens, 1), tokens, tokens - 1, fixed=True)]
        found = softmax if self.attention and tokens > 1 else []
        return [*found, self.activation.site(tokens, self.hidden, last=True)]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            tokens = m.norm(x.flatten(2).transpose(1, 2))
            if self.attention:
                weights = torch.softmax(tokens @ tokens.transpose(1, 2), -1)
                tokens = tokens + weights @ tokens
            return x + m.fall(m.act(m.rise(tokens))).transpose(1, 2).reshape(x.shape)

        channels = shape[0]
        return Run(
            forward, norm=nn.LayerNorm(channels), rise=nn.Linear(channels, self.hidden),
            fall=nn.Linear(self.hidden, channels), act=self.activation.build(made, shape[1] * shape[2]),
        )  # fmt: skip


@dataclass(frozen=True)
class Split(Block):
    """Half of the channels go through a convolution and an activation, the others pass."""

    activation: Activation

    def sites(self, shape: Shape) -> list[ExpectedSite]:
        return [self.activation.site((shape[0] + 1) // 2, *shape[1:])]

    def build(self, shape: Shape, made: Made) -> nn.Module:
        half = (shape[0] + 1) // 2

        def forward(m: Any, x: Tensor) -> Tensor:
            first, *others = x.chunk(2, 1)
            return torch.cat([*others, m.act(m.conv(first))], 1)

        conv = Convolution(half).build((half, *shape[1:]))
        return Run(forward, conv=conv, act=self.activation.build(made, half))
