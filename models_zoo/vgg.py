"""VGG-16 with batch norm for small images: 276,480 ReLU elements at 32×32."""

from __future__ import annotations

__all__ = ["VGG", "vgg16_bn"]

from typing import Literal

import torch
from torch import nn

from autorep_fx.models_zoo._layers import conv3x3, kaiming_init
from autorep_fx.models_zoo._options import check_positive

# (channels, convolutions) of each stage; a 2×2 pooling follows each.
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_SHRINK = 2 ** len(_STAGES)


class VGG(nn.Module):
    """Five stages of 3×3 convolution, batch norm and ReLU, each halved by pooling, and one linear layer.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input (N, C, H, W).
        pool: "avg", which needs no comparison, or "max", with three per output element.
        image_size: H and W of the input, a multiple of 32; decides the linear layer's width.

    Raises:
        ValueError: Unknown pooling, or a size that does not fit.
    """

    def __init__(self, *, num_classes: int, in_channels: int, pool: Literal["avg", "max"], image_size: int) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        if pool not in ("avg", "max"):
            raise ValueError(f"pool must be 'avg' or 'max', got {pool!r}.")
        if image_size % _SHRINK:
            raise ValueError(f"image_size must be a multiple of {_SHRINK} for five poolings, got {image_size}.")
        layers: list[nn.Module] = []
        channels = in_channels
        for width, count in _STAGES:
            for _ in range(count):
                layers += [conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.AvgPool2d(2) if pool == "avg" else nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (image_size // _SHRINK) ** 2, num_classes)
        kaiming_init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))  # type: ignore[no-any-return]


def vgg16_bn(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    pool: Literal["avg", "max"] = "avg",
    image_size: int = 32,
) -> VGG:
    """VGG-16 with batch norm, average pooling and a single linear layer, without dropout.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input.
        pool: "avg", which needs no comparison, or "max": 3 · 31,232 = 93,696 more at 32×32.
        image_size: Height and width of the input, a multiple of 32.
    """
    return VGG(num_classes=num_classes, in_channels=in_channels, pool=pool, image_size=image_size)
