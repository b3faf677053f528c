"""Residual networks with the ReLU after the sum: ResNet-18, ResNet-20 and a small one for digits.

ReLU elements per sample:

| network | size | without a ReLU in the stem | with it |
|---|---|---|---|
| `resnet18` | 32×32 | 491,520 | 557,056 |
| `resnet18` | 64×64 | 1,966,080 | 2,228,224 |
| `resnet20` | 32×32 | 172,032 | 188,416 |
| `digits_resnet` | 8×8 | 3,456 | 4,480 |
"""

from __future__ import annotations

__all__ = ["BasicBlock", "ResNet", "digits_resnet", "resnet18", "resnet20"]

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from autorep_fx.models_zoo._layers import conv3x3, kaiming_init
from autorep_fx.models_zoo._options import check_positive


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: relu2(bn2(conv2(relu1(bn1(conv1(x))))) + shortcut(x)).

    The shortcut is the identity where the shapes agree, otherwise a 1×1 convolution with batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet(nn.Sequential):
    """Stem, stages of basic blocks, global average pooling, one linear layer.

    The stem is a 3×3 convolution at stride 1, and no max pooling follows it. The first stage keeps H and W,
    each later one halves them. Stages are called layer1, layer2, and so on.

    Args:
        widths: Channels of each stage; the stem has as many as the first.
        blocks: Blocks of each stage.
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input (N, C, H, W).
        stem_relu: Whether a ReLU follows the stem's batch norm.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        stem_relu: bool,
    ) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = conv3x3(in_channels, widths[0])
        layers["bn1"] = nn.BatchNorm2d(widths[0])
        if stem_relu:
            layers["relu1"] = nn.ReLU()
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            members = [BasicBlock(channels if i == 0 else width, width, s) for i, s in enumerate(strides)]
            layers[f"layer{stage}"] = nn.Sequential(*members)
            channels = width
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        kaiming_init(self)


def resnet18(num_classes: int = 10, in_channels: int = 3, *, stem_relu: bool = False, image_size: int = 32) -> ResNet:
    """ResNet-18 for small images, widths 64 to 512: 491,520 ReLU elements at 32×32.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input.
        stem_relu: Adds the stem's ReLU (557,056 elements at 32×32), which the published counts leave out.
        image_size: Height and width for `input_shape`; the network itself takes any.
    """
    check_positive(image_size=image_size)
    return ResNet(
        (64, 128, 256, 512),
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        stem_relu=stem_relu,
    )


def resnet20(num_classes: int = 10, in_channels: int = 3, *, stem_relu: bool = True, image_size: int = 32) -> ResNet:
    """ResNet-20 for CIFAR, widths 16, 32 and 64: 188,416 ReLU elements at 32×32.

    Where a stage changes the shape the shortcut is a 1×1 convolution with batch norm ("option B"), not the
    strided, zero-padded identity ("option A"): 2,752 parameters more, the same number of comparisons.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input.
        stem_relu: Whether a ReLU follows the stem's batch norm.
        image_size: Height and width for `input_shape`; the network itself takes any.
    """
    check_positive(image_size=image_size)
    return ResNet((16, 32, 64), (3, 3, 3), num_classes=num_classes, in_channels=in_channels, stem_relu=stem_relu)


def digits_resnet(
    num_classes: int = 10, in_channels: int = 1, *, stem_relu: bool = True, image_size: int = 8
) -> ResNet:
    """Residual network for 8×8 digits that trains in seconds: 7 activation sites, 4,480 ReLU elements.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input.
        stem_relu: Whether a ReLU follows the stem's batch norm.
        image_size: Height and width for `input_shape`; the network itself takes any.
    """
    check_positive(image_size=image_size)
    return ResNet((16, 32, 48), (1, 1, 1), num_classes=num_classes, in_channels=in_channels, stem_relu=stem_relu)
