"""LeNet-5 with ReLU and average pooling: 6,508 ReLU elements at 28×28."""

from __future__ import annotations

__all__ = ["LeNet", "lenet"]

import torch
from torch import nn

from autorep_fx.models_zoo._layers import kaiming_init
from autorep_fx.models_zoo._options import check_positive


class LeNet(nn.Module):
    """Two 5×5 convolutions with average pooling and three linear layers.

    One `nn.ReLU` serves all four activations, as in much user code: one module, four activation sites.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input (N, C, H, W).
        image_size: H and W of the input, 12 or more; decides the first linear layer's width.

    Raises:
        ValueError: A size is no positive integer, or the image is too small for the two convolutions.
    """

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        side = (image_size // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"image_size must be 12 or more, got {image_size}.")
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        kaiming_init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(self.relu(self.fc2(x)))  # type: ignore[no-any-return]


def lenet(num_classes: int = 10, in_channels: int = 1, *, image_size: int = 28) -> LeNet:
    """LeNet-5 for 28×28 images: 4,704 + 1,600 + 120 + 84 = 6,508 ReLU elements.

    Args:
        num_classes: Width of the output (N, num_classes).
        in_channels: Channels of the input.
        image_size: Height and width of the input, 12 or more.
    """
    return LeNet(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
