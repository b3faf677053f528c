"""Pre-activation wide residual networks: WRN-22-8.

ReLU elements of WRN-22-8 at 32×32, per group of three blocks with two activations each (the first
activation of a group still has the previous group's shape):

    group 1   16·32²  + 5 · 128·32² =   671,744
    group 2   128·32² + 5 · 256·16² =   458,752
    group 3   256·16² + 5 · 512·8²  =   229,376
                                      1,359,872     (5,439,488 at 64×64)

A ReLU after the last batch norm would add 512·8² = 32,768; the published count has none.
"""

from __future__ import annotations

__all__ = ["PreActivationBlock", "WideResNet", "wide_resnet22_8"]

from collections import OrderedDict

import torch
from torch import nn

from autorep_fx.models_zoo._layers import conv3x3, kaiming_init
from autorep_fx.models_zoo._options import check_positive


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions, and an identity shortcut from before both.

    Where the shape changes, the shortcut is a 1×1 convolution of the *activated* input, so that the first
    ReLU serves both branches.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


class WideResNet(nn.Sequential):
    """Stem, three groups of pre-activation blocks, global average pooling, one linear layer.

    The stem is a 3×3 convolution to 16 channels. The second and third group halve H and W.

    Args:
        depth: Number of convolutions on the longest path, 6·n + 4 for n blocks a group.
        widen: Factor on the widths 16, 32 and 64 of the groups.
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input (N, C, H, W).
        final_relu: Whether a ReLU follows the last batch norm.

    Raises:
        ValueError: `depth` is not 6·n + 4, or a size is no positive integer.
    """

    def __init__(self, depth: int, widen: int, *, num_classes: int, in_channels: int, final_relu: bool) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels, widen=widen)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6·n + 4 with n of 1 or more, such as 16, 22 or 28; got {depth}.")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = conv3x3(in_channels, 16)
        channels = 16
        for group, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
            first = PreActivationBlock(channels, width, 1 if group == 1 else 2)
            others = [PreActivationBlock(width, width, 1) for _ in range(blocks - 1)]
            layers[f"group{group}"] = nn.Sequential(first, *others)
            channels = width
        layers["bn"] = nn.BatchNorm2d(channels)
        if final_relu:
            layers["relu"] = nn.ReLU()
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        kaiming_init(self)


def wide_resnet22_8(
    num_classes: int = 10, in_channels: int = 3, *, final_relu: bool = False, image_size: int = 32
) -> WideResNet:
    """WRN-22-8 without dropout: 1,359,872 ReLU elements at 32×32, 5,439,488 at 64×64.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input.
        final_relu: Adds the ReLU after the last batch norm (1,392,640 elements at 32×32), which the
            published counts leave out.
        image_size: Height and width for `input_shape`; the network itself takes any.
    """
    check_positive(image_size=image_size)
    return WideResNet(22, 8, num_classes=num_classes, in_channels=in_channels, final_relu=final_relu)
