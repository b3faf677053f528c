"""Small networks that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from autorep_fx.models_zoo import create


class TinyNet(nn.Module):
    """Convolution, norm, one shared ReLU used twice, a residual sum, a ReLU6 and a linear head on 1×8×8 inputs."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6()
        self.fc1 = nn.Linear(4 * 16, 6)
        self.fc2 = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.fc2(self.relu6(self.fc1(x)))


def trained_norms(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in eval mode, after a few train-mode passes that set its norm statistics."""
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(x)
    return model.eval()


def batches(count: int = 4, size: int = 16, classes: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of a task that can be learnt: which quadrant of an 8×8 image is bright."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        y = torch.randint(0, classes, (size,), generator=generator)
        x = torch.randn(size, 1, 8, 8, generator=generator) * 0.5
        for i, label in enumerate(y.tolist()):
            row, column = divmod(label, 2)
            x[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.5
        result.append((x, y))
    return result


def splits() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Training and validation batches, as a pipeline file asks for them."""
    return batches(), batches(seed=1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own, as a pipeline file names it: distance to one-hot targets."""
    return nn.functional.mse_loss(outputs, nn.functional.one_hot(targets, outputs.shape[1]).float())


def seeded() -> TinyNet:
    """A TinyNet with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNet()


def seeded_digits(seed: int = 0) -> nn.Module:
    """The zoo's digits network with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create("digits_resnet")


class Call(nn.Module):
    """Calls a function with itself and the input; parts are registered under their names."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)
