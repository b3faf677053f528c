"""Mixup: what becomes of inputs and loss, and what cannot be mixed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import autorep_fx
from autorep_fx.errors import ConfigError
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.mixing import Mixture
from autorep_fx.training.objective import Objective
from autorep_fx.training.phases import GateTraining
from nets import TinyNet, batches


def test_each_sample_is_mixed_with_its_opposite() -> None:
    x, scale = torch.randn(5, 3, 4, 4), torch.randn(2)
    mixed = Mixture(0.75).inputs(ExampleInputs.of((x, scale)))
    torch.testing.assert_close(mixed.args[0], 0.75 * x + 0.25 * x.flip(0), rtol=0, atol=1e-6)
    assert torch.equal(mixed.args[1], scale)  # it has no batch
    torch.testing.assert_close(mixed.args[0][2], x[2], rtol=0, atol=1e-6)


def test_the_loss_is_that_of_soft_targets() -> None:
    """Cross-entropy is linear in the targets."""
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    soft = 0.3 * F.one_hot(targets, 4) + 0.7 * F.one_hot(targets.flip(0), 4)
    found = Mixture(0.3).loss(lambda y: F.cross_entropy(logits, y), targets)
    torch.testing.assert_close(found, F.cross_entropy(logits, soft), rtol=1e-5, atol=0)


def test_without_it_nothing_is_touched() -> None:
    inputs, targets = ExampleInputs.of(torch.randn(2, 3)), torch.tensor([1, 0])
    mixture = Mixture.draw(0.0)
    assert mixture.inputs(inputs) is inputs
    assert mixture.loss(lambda y: y.sum(), targets) == 1


def test_shares_follow_the_beta_distribution() -> None:
    """Mean 1/2; variance 1 / (4 · (2α + 1)), which is 1/12 for α = 1."""
    torch.manual_seed(0)
    shares = torch.tensor([Mixture.draw(1.0).share for _ in range(4000)])
    assert abs(float(shares.mean()) - 1 / 2) < 0.02
    assert abs(float(shares.var()) - 1 / 12) < 0.01


def test_a_phase_mixes_what_model_and_teacher_see() -> None:
    """With everything kept both compute the same, so what is left of the loss is the task's, of mixed samples."""
    torch.manual_seed(0)
    net, (x, y) = TinyNet().eval(), batches()[0]
    config = {"training": {"mixup": 1.0, "penalty": 0.0}}
    gated = autorep_fx.prepare(net, "100%", example_inputs=x, config=config)
    phase = GateTraining(autorep_fx.calibrate(gated, batches()).eval(), net, gated.config, Objective())
    torch.manual_seed(5)
    found = phase.loss(gated, ExampleInputs.of(x), y)
    torch.manual_seed(5)
    share = Mixture.draw(1.0).share
    outputs = net(share * x + (1 - share) * x.flip(0))
    expected = share * F.cross_entropy(outputs, y) + (1 - share) * F.cross_entropy(outputs, y.flip(0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_indices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.mixup mixes inputs of floating-point numbers[^?]*int64 \(2, 7\)"):
        Mixture(0.5).inputs(ExampleInputs.of(torch.zeros(2, 7, dtype=torch.long)))
