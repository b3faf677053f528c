"""Layers of random networks that hold no activation of their own: norms and convolutions of any geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

__all__ = ["Convolution", "Norm", "Shape"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Norm:
    """A norm: ``batch`` with its options, ``group``, or ``instance``."""

    kind: str = "batch"
    momentum: float | None = 0.1
    affine: bool = True
    track: bool = True

    def build(self, shape: Shape) -> nn.Module:
        """The norm for ``shape``; a group norm where an instance norm would have one value per channel."""
        channels, height, width = shape
        if self.kind == "batch":
            return nn.BatchNorm2d(
                channels,
                momentum=self.momentum,
                affine=self.affine,
                track_running_stats=self.track or height * width < 2,
            )
        if self.kind == "instance" and height * width > 1:
            return nn.InstanceNorm2d(channels, affine=self.affine)
        return nn.GroupNorm(math.gcd(channels, 2), channels, affine=self.affine)


@dataclass(frozen=True)
class Convolution:
    """A convolution; what does not fit a shape (groups, missing padding, a large stride) is brought to fit.

    Attributes:
        channels: Output channels.
        kernel: Side of the kernel, odd.
        stride: Stride.
        padded: Whether padding keeps the size, the stride apart.
        dilation: Dilation.
        groups: At most this many groups; a large number makes it depthwise where channels allow.
        transposed: Whether it is a transposed one, which enlarges by the stride.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    padded: bool = True
    dilation: int = 1
    groups: int = 1
    transposed: bool = False

    def _geometry(self, shape: Shape) -> tuple[int, int]:
        """Padding and stride."""
        reach = self.dilation * (self.kernel - 1)
        size = shape[1]
        padding = reach // 2 if self.padded or size <= reach or self.transposed else 0
        return padding, 1 if self.transposed and size > 5 else self.stride

    def shape(self, shape: Shape) -> Shape:
        """Shape of the output."""
        (padding, stride), reach, size = self._geometry(shape), self.dilation * (self.kernel - 1), shape[1]
        if self.transposed:
            side = (size - 1) * stride + 1 + reach - 2 * padding
        else:
            side = (size + 2 * padding - reach - 1) // stride + 1
        return self.channels, side, side

    def build(self, shape: Shape) -> nn.Module:
        """The layer for inputs of ``shape``."""
        padding, stride = self._geometry(shape)
        kind = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        return kind(
            shape[0], self.channels, self.kernel, stride=stride, padding=padding, dilation=self.dilation,
            groups=math.gcd(math.gcd(shape[0], self.channels), self.groups),
        )  # fmt: skip
