"""Fits during the gate training: they follow the inputs, keep what was trained, and start where that is safe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import autorep_fx
from autorep_fx.kinds import KINDS
from autorep_fx.models_zoo import create
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.polynomials import FitLimits, fit_piecewise
from autorep_fx.training.gated_model import GatedModel


def _gated(**polynomials: float) -> tuple[GatedModel, torch.Tensor]:
    """Two sites behind convolutions, calibrated in order, everything kept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten())
    x = torch.randn(64, 1, 8, 8)
    gated = autorep_fx.prepare(model, "0", example_inputs=x, config={"polynomials": polynomials})
    gated.calibrate(ExampleInputs.of(x))
    return gated, x


def _fit(gate: nn.Module) -> torch.Tensor:
    """Degree-2 fit of ReLU to the moments that a gate has recorded."""
    form = KINDS["relu"].piecewise([])
    return torch.from_numpy(fit_piecewise(form, gate.mean.numpy(), gate.std.numpy(), 2, FitLimits()))


def test_what_was_trained_stays_on_top_of_a_fit_that_moves() -> None:
    """After the inputs changed: coefficients = fit to the new moments + what training had added to the old ones."""
    gated, x = _gated(refresh_every=1)
    gate = gated.gates["1"]
    added = torch.tensor([0.1, -0.2, 0.05])[:, None].expand(3, 3)
    gate.set_coefficients(gate.coefficients.detach() + added)
    before = gate.coefficients.detach().clone()
    gated.train()
    gated.step(0.0)
    gated(3 * x + 1)
    assert (gate.coefficients - before).abs().max() > 0.05
    torch.testing.assert_close(gate.coefficients.detach().double(), _fit(gate) + added, rtol=1e-5, atol=1e-5)


def test_fits_of_a_step_are_made_in_order() -> None:
    """The second site follows what the first one's new polynomial gives, in the same forward pass."""
    gated, x = _gated(refresh_every=1)
    gated.train()
    seen: list[torch.Tensor] = []
    gated.gates["3"].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    mean = gated.gates["3"].mean.clone()
    gated.step(0.0)
    gated.set_gates_to("replaced")
    gated(3 * x)
    first, second = gated.gates["1"], gated.gates["3"]
    y = torch.nn.functional.conv2d(3 * x, *(gated.network.state_dict()[f"0.{k}"] for k in ("weight", "bias")))
    expected = torch.nn.functional.conv2d(
        first.polynomial(y), *(gated.network.state_dict()[f"2.{k}"] for k in ("weight", "bias"))
    )
    torch.testing.assert_close(seen[-1], expected.detach(), rtol=1e-4, atol=1e-5)
    moved = torch.lerp(mean, expected.detach().double().mean((0, 2, 3)), 0.2)
    torch.testing.assert_close(second.mean, moved, rtol=1e-4, atol=1e-5)


def test_a_gated_pool_follows_by_its_own_fit() -> None:
    """The affine map of the average moves to the least-squares fit of the maximum on the new inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2))
    x = torch.randn(64, 1, 8, 8)
    config = {"gates": {"granularity": "channel", "pools": True}, "polynomials": {"refresh_every": 1}}
    gated = autorep_fx.prepare(model, "0%", example_inputs=x, config=config)
    gated.calibrate(ExampleInputs.of(x))
    [gate] = gated.gates.values()
    gated.train()
    for _ in range(60):  # the old moments fade by 0.8 a time
        gated.step(0.0)
        gated(4 * x)
    y = nn.functional.conv2d(4 * x, model[0].weight, model[0].bias).detach().double()
    average = nn.functional.avg_pool2d(y, 2).transpose(0, 1).flatten(1)
    largest = nn.functional.max_pool2d(y, 2).transpose(0, 1).flatten(1)
    expected = [np.polyfit(a, m, 1)[::-1] for a, m in zip(average.numpy(), largest.numpy(), strict=True)]
    np.testing.assert_allclose(gate.coefficients.detach().T, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("until", "progress", "follows"), [(1.0, 0.9, True), (0.5, 0.4, True), (0.5, 0.6, False)])
def test_fits_follow_until_the_progress_that_is_set(until: float, progress: float, follows: bool) -> None:
    """After it the coefficients move by gradients alone."""
    gated, x = _gated(refresh_every=1, refresh_until=until)
    gated.train()
    gated.step(progress)
    before = gated.gates["1"].coefficients.detach().clone()
    gated(3 * x)
    assert bool((gated.gates["1"].coefficients != before).any()) == follows


def test_many_flips_at_once_do_not_wait_for_the_next_round() -> None:
    """With a round every 1000 steps, the step after which two of a hundred comparisons more are replaced is one."""
    gated, x = _gated(refresh_every=1000)
    gated.train()
    gated.step(0.0)
    before = gated.gates["1"].coefficients.detach().clone()
    gated(3 * x)
    np.testing.assert_array_equal(gated.gates["1"].coefficients.detach(), before)
    gated.step(0.1)  # the schedule has more than a third go
    gated(3 * x)
    assert bool((gated.gates["1"].coefficients != before).any())


@pytest.mark.parametrize(("name", "shape", "in_place"), [("digits_resnet", (1, 8, 8), True),
                                                         ("resnet20", (3, 32, 32), False)])  # fmt: skip
def test_fits_start_as_the_training_does_where_it_can_find_its_way(
    name: str, shape: tuple[int, ...], in_place: bool
) -> None:
    """ResNet-20 with untrained weights multiplies its errors from block to block: fits in order; a shallow one not."""
    torch.manual_seed(0)
    model, x = create(name).eval(), torch.randn(32, *shape)
    data = [(x, torch.zeros(32, dtype=torch.int64))]
    found, kept = (
        autorep_fx.prepare(model, "0", example_inputs=x, config={"calibration": {"prefix": prefix}})
        for prefix in ("auto", "kept")
    )
    before = {key: value.clone() for key, value in found.network.state_dict().items() if "running" in key}
    for gated in (found, kept):
        gated.calibrate(data)
    last = list(kept.gates)[-1]
    assert torch.equal(found.gates[last].mean, kept.gates[last].mean) == in_place
    for key, value in before.items():  # trying it left the model as it was
        assert torch.equal(found.network.state_dict()[key], value)
    assert found.kept == sum(site.comparisons for site in found.sites if site.gateable)


def test_a_loaded_state_follows_at_the_same_step() -> None:
    """When the fits followed last is part of the state: after the 2 % have been followed, they are not due again."""
    gated, _ = _gated(refresh_every=1000)
    gated.train()
    gated.steps.fill_(1)
    gated.set_gates_to("replaced")
    gated.gates["1"].kept.fill_(True)
    gated._follow(0.5)
    assert {gate.mode for gate in gated.gates.values()} == {"follow"}  # many flips
    again, _ = _gated(refresh_every=1000)
    again.load_state_dict(gated.state_dict())
    for model in (gated, again):
        model._follow(0.5)
        assert {gate.mode for gate in model.gates.values()} == {"run"}
