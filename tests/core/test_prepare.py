"""A gated module with everything kept is the model; its state behaves like any module's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import autorep_fx
from autorep_fx.errors import BudgetError, BudgetInfeasibleError, ConfigError, NoSitesError
from nets import TinyNet, batches, trained_norms


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(8, 1, 8, 8)


@pytest.fixture
def model(x: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    return trained_norms(TinyNet(), x)


def test_all_kept_equals_the_model_in_outputs_gradients_and_statistics(model: nn.Module, x: torch.Tensor) -> None:
    """In train mode too: bit-equal outputs, parameter gradients and running statistics over three steps."""
    gated = autorep_fx.prepare(model, "100%", example_inputs=x)
    assert torch.equal(gated(x), model(x))
    model.train(), gated.train()
    for seed in range(3):
        batch = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        for module in (model, gated):
            module.zero_grad()
            module(batch).square().sum().backward()
        gradients = dict(gated.network.named_parameters())
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.grad, gradients[name].grad), name
    state = gated.network.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_each_call_is_a_site_with_its_own_gate(model: nn.Module, x: torch.Tensor) -> None:
    """A ReLU module used twice gives two gates; the clip counts two comparisons per element."""
    gated = autorep_fx.prepare(model, "10%", example_inputs=x)
    assert {name: gate.site.comparisons for name, gate in gated.gates.items()} == {
        "relu": 256, "relu#2": 256, "relu6": 12,
    }  # fmt: skip
    assert gated.kept == 524 == gated.allowance.gateable
    assert gated.allowance.allowed == 52


def test_the_model_is_never_changed(x: torch.Tensor) -> None:
    """Weights, buffers, mode and gradients of the argument are what they were, whatever is done to the result."""
    model = trained_norms(TinyNet(), x).train()
    before = copy.deepcopy(model.state_dict())
    gated = autorep_fx.prepare(model, "10%", example_inputs=x)
    gated.train()(x).sum().backward()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_dict_restores_scores_states_moments_and_phase(model: nn.Module, x: torch.Tensor) -> None:
    """A second module loaded from the state dict of a calibrated, stepped one gives the same outputs and kept units."""
    first = autorep_fx.prepare(model, "10%", example_inputs=x)
    first.calibrate(batches())
    first.step(0.5)
    second = autorep_fx.prepare(model, "10%", example_inputs=x)
    second.load_state_dict(first.state_dict())
    assert second.kept == first.kept < 524
    assert torch.equal(second(x), first(x))
    assert int(second.phase) == int(first.phase) == 1
    first.project(), second.project()
    assert torch.equal(second(x), first(x))
    assert second.is_projected


def test_deepcopy_and_modes_behave(model: nn.Module, x: torch.Tensor) -> None:
    """A deep copy is independent; train() and eval() switch the norms."""
    gated = autorep_fx.prepare(model, "10%", example_inputs=x)
    twin = copy.deepcopy(gated)
    twin.train()
    assert not torch.equal(twin(x), gated(x))
    twin.eval()
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1)
    assert not torch.equal(twin(x), gated(x))
    assert gated.double()(x.double()).dtype == torch.float64


def test_parameter_groups_cover_every_parameter_once(model: nn.Module, x: torch.Tensor) -> None:
    """Weights, polynomials and scores, each in one group, the rates as asked."""
    gated = autorep_fx.prepare(model, "10%", example_inputs=x)
    groups = gated.parameter_groups(lr=1e-3, gate_lr=1e-2, weight_decay=0.1)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("weights", 1e-3, 0.1), ("polynomials", 1e-3, 0.0), ("scores", 1e-2, 0.0),
    ]  # fmt: skip
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in gated.parameters())


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_the_schedule_reaches_the_budget_whatever_the_number_of_steps(
    model: nn.Module, x: torch.Tensor, steps: int
) -> None:
    """At the end no more is kept than allowed, and projection then spends the budget exactly."""
    gated = autorep_fx.prepare(model, "10%", example_inputs=x)
    gated.calibrate(batches())
    seen = []
    for step in range(1, steps + 1):
        gated.step(step / steps)
        seen.append(gated.kept)
    assert seen[-1] <= gated.allowance.allowed
    assert seen[-1] >= gated.allowance.allowed - 2  # the dearest unit costs 2
    assert seen == sorted(seen, reverse=True)
    gated.project()
    assert gated.kept == gated.allowance.allowed == 52
    gated.step(1.0)
    assert gated.kept == 52


def test_a_replaced_unit_returns_when_its_score_rises(model: nn.Module, x: torch.Tensor) -> None:
    """Hysteresis: inside the band nothing flips, above it a replaced unit is kept again."""
    gated = autorep_fx.prepare(model, "50%", example_inputs=x)
    gate = gated.gates["relu"]
    with torch.no_grad():
        gate.score.fill_(1.0)
        gate.score.view(-1)[:3] = torch.tensor([-0.01, -0.002, 0.002])
    gate.update_state()
    assert gate.kept.view(-1)[:3].tolist() == [False, True, True]
    with torch.no_grad():
        gate.score.view(-1)[:2] = torch.tensor([0.002, -0.01])
    gate.update_state()
    assert gate.kept.view(-1)[:2].tolist() == [False, False]
    with torch.no_grad():
        gate.score.view(-1)[0] = 0.004
    gate.update_state()
    assert gate.kept.view(-1)[:2].tolist() == [True, False]


def test_the_penalty_pushes_scores_down_above_the_target_only(model: nn.Module, x: torch.Tensor) -> None:
    """Its gradient to each score is softplus(score) times the unit's share, and zero once the target is met."""
    gated = autorep_fx.prepare(model, "10%", example_inputs=x)
    gated.step(1.0)
    gated.set_gates_to("kept")
    penalty = gated.budget_penalty()
    assert float(penalty.detach()) == pytest.approx(1 - 52 / 524)
    penalty.backward()
    gate = gated.gates["relu6"]
    expected = nn.functional.softplus(gate.score.detach()) * 2 / 524
    torch.testing.assert_close(gate.score.grad, expected, rtol=1e-6, atol=0)
    gated.zero_grad()
    gated.set_gates_to("replaced")
    gated.budget_penalty().backward()
    assert float(gate.score.grad.abs().sum()) == 0


def test_per_site_settings(model: nn.Module, x: torch.Tensor) -> None:
    """A site can be ignored, replaced for good, or gated at another granularity and degree."""
    gated = autorep_fx.prepare(
        model, "50%", example_inputs=x,
        config={"sites": {"relu*": {"granularity": "channel", "degree": 1}, "relu#2": {"mode": "replace"},
                          "relu6": {"mode": "ignore"}}},
    )  # fmt: skip
    assert list(gated.gates) == ["relu", "relu#2"]
    assert gated.gates["relu"].kept.shape == (4, 1, 1)
    assert gated.gates["relu"].degree == 1
    assert (gated.allowance.gateable, gated.allowance.fixed, gated.allowance.allowed) == (512, 12, 256)
    gated.calibrate(batches())
    gated.project()
    assert gated.gates["relu#2"].kept_comparisons == 0
    assert gated.kept == 256


def test_bad_input_is_told_before_any_work(model: nn.Module, x: torch.Tensor) -> None:
    """Budgets, unknown sites and models without activations are typed errors that say what to do."""
    with pytest.raises(BudgetError, match="above the 524 comparisons"):
        autorep_fx.prepare(model, 525, example_inputs=x)
    with pytest.raises(ConfigError, match=r"'relu7' matches no site. Did you mean"):
        autorep_fx.prepare(model, 5, example_inputs=x, config={"sites": {"relu7": {"degree": 1}}})
    with pytest.raises(NoSitesError):
        autorep_fx.prepare(nn.Linear(3, 2), 0.5, example_inputs=torch.randn(2, 3))
    [problem] = autorep_fx.inspect(nn.Linear(3, 2), torch.randn(2, 3)).problems
    assert "no activation" in problem
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    with pytest.raises(BudgetInfeasibleError, match=r"below the 54 that no gate can remove[\s\S]*max_pool2d"):
        autorep_fx.prepare(pooled, 0, example_inputs=x)
    assert autorep_fx.prepare(pooled, "0%", example_inputs=x).allowance.total == 54
    with pytest.raises(ConfigError, match="Progress goes from 0 to 1"):
        autorep_fx.prepare(model, 5, example_inputs=x).step(1.5)
