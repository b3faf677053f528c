"""A training that explodes stops, and names where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import NonFiniteError
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.health import exploded, worst_site
from autorep_fx.training.objective import Objective
from nets import batches, seeded, trained_norms


def _gated() -> GatedModel:
    x = batches()[0][0]
    gated = autorep_fx.prepare(trained_norms(seeded(), x), "10%", example_inputs=x)
    gated.calibrate(batches())
    return gated.eval()


@pytest.mark.parametrize(("name", "site"), [("bn1", "relu"), ("bn2", "relu#2"), ("fc1", "relu6")])
def test_the_site_whose_range_exploded_is_named(name: str, site: str) -> None:
    """The site after the layer that grew, not those that follow, with its calibrated range and that of now."""
    gated = _gated()
    x = ExampleInputs.of(batches()[0][0])
    with torch.no_grad():
        gated.network.get_parameter(f"{name}.weight").mul_(1e3)
    found = worst_site(gated, Objective(), x)
    low, high = gated.gates[site].input_range.tolist()
    assert found.startswith(f"the site whose range exploded: {site}, calibrated on {low:.3g} to {high:.3g}, now ")


def test_a_site_whose_input_is_not_finite_is_named_first() -> None:
    """The first one, whatever comes after it."""
    gated = _gated()
    with torch.no_grad():
        gated.network.get_parameter("bn2.weight").fill_(torch.inf)
    assert "relu#2, whose input is not finite" in worst_site(gated, Objective(), ExampleInputs.of(batches()[0][0]))


def test_no_site_is_blamed_for_a_loss_that_is_wrong_by_itself() -> None:
    """All inputs of sites are where they were: it is the loss or its targets."""
    gated = _gated()
    found = worst_site(gated, Objective(), ExampleInputs.of(batches()[0][0]))
    assert found.startswith("no site is far outside of its calibrated range; the furthest: ")


def test_a_plain_model_has_no_sites() -> None:
    """Such as the base model."""
    assert "no sites" in worst_site(nn.Linear(2, 2), Objective(), ExampleInputs.of(torch.ones(1, 2)))


@pytest.mark.parametrize(
    ("loss", "expected"), [(1.0, False), (2.9e4, False), (3.1e4, True), (torch.inf, True), (torch.nan, True)]
)
def test_a_loss_explodes_at_ten_thousand_times_the_first(loss: float, expected: bool) -> None:
    """Relative to one more than the first one, so that a start near 0 is no trap."""
    assert exploded(loss, 2.0) is expected


def test_an_exploding_run_names_site_and_last_good_checkpoint(tmp_path: Path) -> None:
    """From some step on a norm's outputs are a million times too large; the weights of the steps before are saved."""
    steps = 0

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        nonlocal steps
        steps += module.training
        if steps == 6 and module.training:
            with torch.no_grad():
                module.get_parameter("network.bn2.weight").mul_(1e6)
        outputs: Tensor = module(x)
        return outputs

    config = {"training": {"epochs": 3}, "checkpoints": {"every_steps": 1}}
    with pytest.raises(NonFiniteError) as caught:
        autorep_fx.transform(
            trained_norms(seeded(), batches()[0][0]), "10%", data=batches(), forward=forward, config=config,
            out_dir=tmp_path,
        )  # fmt: skip
    assert "train_gates, 50% of its steps" in caught.value.what
    assert caught.value.received is not None
    assert caught.value.received.startswith("the site whose range exploded: relu#2, calibrated on")
    assert caught.value.fix is not None
    assert f"The last good checkpoint is {tmp_path / 'checkpoint' / 'step-000000005'}" in caught.value.fix
