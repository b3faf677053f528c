"""What the networks share: the convolution before a batch norm, and the initialisation."""

from __future__ import annotations

__all__ = ["conv3x3", "kaiming_init"]

from torch import nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution that keeps H and W at stride 1; without bias, because a batch norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def kaiming_init(model: nn.Module) -> None:
    """Initialise in place: Kaiming normal convolutions and linear layers, identity batch norms.

    Convolutions keep the variance of the gradients (fan-out). Linear layers keep that of the outputs
    (fan-in), with a gain of 1 because most of them produce logits, and start with zero bias.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            nn.init.zeros_(module.bias)
