"""The range penalty: what it is of, its gradient, what it keeps in memory, and what it does to a training."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import autorep_fx
from autorep_fx.config import TransformConfig
from autorep_fx.gates import GatedActivation
from autorep_fx.training.objective import Objective
from autorep_fx.training.range_penalty import WIDTH, WatchedRanges, range_excess
from autorep_fx.training.trainer import GateTrainer


class Net(nn.Module):
    """Two sites of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


@pytest.fixture
def gated() -> autorep_fx.GatedModel:
    torch.manual_seed(0)
    x = torch.randn(64, 2, 4, 4)
    return autorep_fx.calibrate(autorep_fx.prepare(Net(), "50%", example_inputs=(x[:4],)), [(x, torch.zeros(64))])


@pytest.fixture
def gate(gated: autorep_fx.GatedModel) -> GatedActivation:
    result = next(iter(gated.gates.values()))
    generator = torch.Generator().manual_seed(1)
    result.kept.copy_(torch.rand(result.kept.shape, generator=generator) > 0.5)
    return result


def test_it_is_of_replaced_elements_beyond_the_range(gate: GatedActivation) -> None:
    x = 5 * torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    expected = 0.0
    for sample in x:
        for place, value in zip(torch.cartesian_prod(*map(torch.arange, (3, 4, 4))), sample.flatten(), strict=True):
            channel = int(place[0])
            z = (float(value) - float(gate.mean[channel])) / float(gate.floored_std[channel])
            if not gate.kept[tuple(place)]:
                expected += max(0.0, abs(z) - WIDTH) ** 2 / 6
    assert expected > 1
    torch.testing.assert_close(float(range_excess(gate, x)), expected, rtol=1e-4, atol=0)
    inside = (gate.mean + gate.floored_std * (WIDTH - 0.01)).float().view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert float(range_excess(gate, inside)) == 0.0


def test_gradient(gate: GatedActivation) -> None:
    """That of finite differences; the moments are those of the site, in float32."""
    x = (8 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: range_excess(gate, value).double(), x, eps=1e-3, atol=2e-2, rtol=2e-2)


def test_it_keeps_its_input_alone(gate: GatedActivation) -> None:
    """Which the gate keeps anyway."""
    kept: list[int] = []
    x = torch.randn(32, 3, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        range_excess(gate, x)
    assert sum(pointer == x.data_ptr() for pointer in kept) == 1
    assert len(kept) == 4  # and state, mean and deviation


def test_a_training_with_it_stays_in_range() -> None:
    """One sample in sixteen is far off; the penalty pulls its inputs in, up to a tenth of what they are without."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(128, 2, 4, 4, generator=generator)
    x[::16] *= 12
    data = [(part, torch.arange(32) % 4) for part in x.split(32)]
    excess = {}
    for weight in (0.0, 1.0):
        config = {
            "training": {"epochs": 0, "range_penalty": weight},
            "finetune": {"epochs": 20, "lr": 1e-2}, "calibration": {"samples": 128},
        }  # fmt: skip
        torch.manual_seed(0)
        net = Net()
        calibration = [(part[part.flatten(1).abs().amax(1) < 8], targets) for part, targets in data]
        gated = autorep_fx.prepare(net, "0", example_inputs=(data[0][0],), config=config)
        autorep_fx.calibrate(gated, calibration)
        trainer = GateTrainer(gated, net, gated.config, objective=Objective(), data=data)
        gated.project()
        trainer.finetune()
        with torch.no_grad(), WatchedRanges(gated.gates) as ranges:
            gated(x)
        excess[weight] = sum(float(value) for value in ranges.excess.values())
    assert 0 < excess[1.0] < 0.1 * excess[0.0]


def test_recomputation_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"recompute and training\.range_penalty contradict"):
        TransformConfig.model_validate({"training": {"range_penalty": 1e-3}, "execution": {"recompute": True}})
