"""Statistics of batch norms that are measured anew: plain averages over batches, and nothing else moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.norm_statistics import measure_norms
from autorep_fx.training.objective import Objective
from autorep_fx.training.recompute import recomputing
from autorep_fx.training.trainer import GateTrainer


class Frozen(nn.BatchNorm2d):
    """One that stays in eval mode."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Net(nn.Module):
    """Norms with a momentum, with none, called twice, and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.usual, self.cumulative = nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm2d(4, momentum=None)
        self.twice, self.frozen = nn.BatchNorm2d(4, momentum=0.2), Frozen(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.usual(self.conv(x)))
        x = torch.relu(self.cumulative(x) + 1)
        x = self.twice(self.twice(3 * x + 2).square())
        return self.frozen(torch.relu(x)).mean((2, 3))


@pytest.fixture
def batches() -> list[ExampleInputs]:
    generator = torch.Generator().manual_seed(3)
    return [ExampleInputs.of(2 * torch.randn(5, 3, 8, 8, generator=generator).double() + k) for k in range(3)]


@pytest.fixture
def gated(batches: list[ExampleInputs]) -> autorep_fx.GatedModel:
    torch.manual_seed(0)
    net = Net().double().train()
    net(batches[0].args[0])  # statistics that are not those of the start
    return autorep_fx.prepare(net, "50%", example_inputs=batches[0].args)


def statistics_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def by_hand(network: nn.Module, batches: list[ExampleInputs], momenta: dict[str, float]) -> dict[str, Tensor]:
    """Every batch from the same start; ``new = (1 − m)·old + m·batch`` solved for the batch."""
    total: dict[str, Tensor] = {}
    for inputs in batches:
        copied = copy.deepcopy(network).train()
        for name, buffer in copied.named_buffers():
            if "num_batches" in name:
                buffer.zero_()
        before = statistics_of(copied)
        inputs.call(copied)
        for name, new in statistics_of(copied).items():
            momentum = momenta[name.split(".")[-2]]
            own = before[name] if not momentum else (new - (1 - momentum) * before[name]) / momentum
            total[name] = total.get(name, 0) + own / len(batches)
    return total


MOMENTA = {"usual": 0.3, "cumulative": 1.0, "twice": 1 - 0.8**2, "frozen": 0.0}


@pytest.mark.parametrize("recompute", [False, True])
def test_they_become_plain_averages(
    gated: autorep_fx.GatedModel, batches: list[ExampleInputs], recompute: bool
) -> None:
    expected = by_hand(gated.network, batches, MOMENTA)
    with recomputing(gated.network, wanted=recompute):
        assert measure_norms(gated.network, batches, lambda inputs: inputs.call(gated)) == 3
        measured = statistics_of(gated.network)
    assert measured.keys() == expected.keys()
    for name, value in measured.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_nothing_else_moves(gated: autorep_fx.GatedModel, batches: list[ExampleInputs]) -> None:
    gated.eval()
    before = copy.deepcopy(gated.state_dict())
    measure_norms(gated.network, batches, lambda inputs: inputs.call(gated))
    changed = {
        name for name, value in gated.state_dict().items() if not torch.allclose(value, before[name], equal_nan=True)
    }
    expected = [f"{norm}.running_{what}" for norm in ("usual", "cumulative", "twice") for what in ("mean", "var")]
    assert sorted(name.removeprefix("network.") for name in changed) == sorted(expected)
    assert not gated.network.training


@pytest.mark.parametrize("given", [0, 2])
def test_without_batches_or_where_a_pass_fails_they_stay(
    gated: autorep_fx.GatedModel, batches: list[ExampleInputs], given: int
) -> None:
    before = statistics_of(gated.network)

    def passes(inputs: ExampleInputs) -> None:
        inputs.call(gated)
        if inputs is batches[1]:
            raise RuntimeError("out of memory")

    if given:
        with pytest.raises(RuntimeError, match="out of memory"):
            measure_norms(gated.network, batches[:given], passes)
    else:
        assert measure_norms(gated.network, [], passes) == 0
    assert all(torch.equal(value, before[name]) for name, value in statistics_of(gated.network).items())


def test_fine_tuning_ends_with_statistics_of_its_weights(batches: list[ExampleInputs]) -> None:
    """Those of the kept weights, where running averages are mixed with those of weights before."""
    torch.manual_seed(0)
    net = Net()
    data = [(inputs.args[0].float(), torch.arange(5) % 4) for inputs in batches]
    config = {
        "calibration": {"samples": 15}, "training": {"epochs": 1, "lr": 1e-2},
        "finetune": {"epochs": 2, "lr": 1e-2},
    }  # fmt: skip
    states = {}
    for count in (0, 3):
        gated = autorep_fx.prepare(net, "0", example_inputs=(data[0][0],), config=config)
        autorep_fx.calibrate(gated, data)
        gated = tuned(gated, net, data, count)
        expected = by_hand(gated.network, [ExampleInputs.of(x) for x, _ in data], MOMENTA)
        measured = statistics_of(gated.network)
        states[count] = max(float((measured[name] - expected[name]).abs().max()) for name in measured)
    assert states[3] < 1e-4
    assert states[0] > 1e-2


def tuned(gated: autorep_fx.GatedModel, net: nn.Module, data: object, norm_batches: int) -> autorep_fx.GatedModel:
    """After both phases of the trainer."""
    finetune = gated.config.finetune.model_copy(update={"norm_batches": norm_batches})
    config = gated.config.model_copy(update={"finetune": finetune})
    trainer = GateTrainer(gated, net.eval(), config, objective=Objective(), data=data)
    trainer.train_gates()
    gated.project()
    trainer.finetune()
    return gated
