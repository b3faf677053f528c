"""Networks of the structures that lowering meets, and gates that keep what chance says with any polynomials."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx

__all__ = ["STRUCTURES", "gated_at_random", "spread"]


class Basic(nn.Module):
    """Residual blocks with a strided shortcut, as ResNets have them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(2, 4, 1), (4, 4, 1), (4, 6, 2), (6, 6, 1)]
        self.stem, self.bn = nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.ones = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1, bias=False) for i, o, s in sizes)
        self.twos = nn.ModuleList(nn.Conv2d(o, o, 3, 1, 1, bias=False) for i, o, s in sizes)
        self.cuts = nn.ModuleList(nn.Identity() if i == o else nn.Conv2d(i, o, 1, s) for i, o, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in sizes for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        for at, (one, two, cut) in enumerate(zip(self.ones, self.twos, self.cuts, strict=True)):
            y = self.norms[2 * at + 1](two(F.relu(self.norms[2 * at](one(x)))))
            x = F.relu(y + cut(x))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Norm and activation before each convolution, the sum untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(6))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.last, self.head = nn.BatchNorm2d(4), nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for at in range(2):
            y = F.relu(self.norms[2 * at](x))
            y = self.convs[2 * at](y)
            x = x + self.convs[2 * at + 1](F.relu(self.norms[2 * at + 1](y)))
        return self.head(F.avg_pool2d(F.relu(self.last(x)), 4).flatten(1))


class Dense(nn.Module):
    """Every layer reads all values before it, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 2 * at) for at in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 2 * at, 2, 3, padding=1) for at in range(3))
        self.shrink, self.norm, self.head = nn.Conv2d(10, 5, 1), nn.BatchNorm2d(10), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            found.append(conv(F.relu(norm(torch.cat(found, 1)))))
        y = F.avg_pool2d(self.shrink(F.relu(self.norm(torch.cat(found, 1)))), 2)
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


class Inverted(nn.Module):
    """Inverted residual blocks: wide depthwise convolutions between narrow ends, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6() if at else nn.ReLU(),
                nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4),
            )
            for at in range(2)
        )  # fmt: skip
        self.head = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(self.head(x).mean((2, 3)))


class Grouped(nn.Module):
    """Convolutions in groups, one of them transposed, max pooling, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.PReLU(6),
            nn.MaxPool2d(2), nn.ConvTranspose2d(6, 4, 3, 2, groups=2), nn.BatchNorm2d(4), nn.ReLU(),
            nn.AvgPool2d(3, 2, 1), nn.LeakyReLU(0.1),
        )  # fmt: skip
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


STRUCTURES: dict[str, Callable[[], nn.Module]] = {
    "basic": Basic, "pre-activation": PreActivation, "dense": Dense, "inverted": Inverted, "grouped": Grouped,
}  # fmt: skip


def spread(model: nn.Module, seed: int) -> nn.Module:
    """The model in eval mode, its norms with statistics and parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.running_mean, -1.0), (module.running_var, 0.3), (module.weight, -1.0),
                                (module.bias, -1.0)):  # fmt: skip
                if tensor is not None:
                    tensor.data.uniform_(low, 1.5, generator=generator)
    return model.eval()


def gated_at_random(
    model: nn.Module, x: Tensor, *, granularity: str = "element", share: float = 0.3, seed: int = 0,
    wild: bool = False, degree: int = 2,
) -> autorep_fx.GatedModel:  # fmt: skip
    """A projected model that keeps about ``share`` of its units.

    Args:
        model: The model.
        x: Example.
        granularity: Of the gates.
        share: Of the budget.
        seed: Of states and polynomials.
        wild: Draw polynomials of either sign, ill-conditioned and without some of their coefficients too.
        degree: Of the polynomials.
    """
    config = {"gates": {"granularity": granularity}, "polynomials": {"degree": degree}, "verification": "off"}
    gated = autorep_fx.prepare(model, share, example_inputs=x, config=config)
    generator = torch.Generator().manual_seed(seed)
    for gate in gated.gates.values():
        shape = (3, gate.site.channels)
        rows = torch.tensor([[0.2], [0.5], [0.15]]) * (0.7 + 0.6 * torch.rand(shape, generator=generator))
        if wild:
            rows = rows * torch.tensor([-1.0, 0.0, 1e-3, 1.0, 1.0])[torch.randint(5, shape, generator=generator)]
        gate.set_coefficients(rows[: gate.degree + 1])
        gate.score.data.copy_(torch.rand(gate.score.shape, generator=generator))
    autorep_fx.project(gated)
    return gated.eval()
