"""The methods: each keeps to its own rule, all of them to the exactness rule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

import autorep_fx
from autorep_fx.config import PipelineConfig, TransformConfig
from autorep_fx.config_io import parse_config, to_yaml
from autorep_fx.config_methods import METHODS as PRESETS
from autorep_fx.errors import ConfigError
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.methods import METHODS
from nets import batches, seeded, trained_norms

FAST: dict[str, Any] = {
    "training": {"epochs": 2}, "finetune": {"epochs": 1}, "calibration": {"samples": 32},
    "outputs": {"onnx": False, "report": False},
}  # fmt: skip
TOTAL = 524  # gateable comparisons of a TinyNet: 2 × 4 × 8 × 8 of the ReLUs, 6 × 2 of the ReLU6


def _config(method: str, **changes: Any) -> dict[str, Any]:
    return {**FAST, **changes, "training": {**FAST["training"], "method": method, **changes.get("training", {})}}


def _gated(method: str, budget: Any = "10%", seed: int = 0, **changes: Any) -> GatedModel:
    """A calibrated TinyNet with everything kept, as the method starts it."""
    x = batches()[0][0]
    gated = autorep_fx.prepare(
        trained_norms(seeded(), x), budget, example_inputs=x, config=_config(method, **changes)
    )  # fmt: skip
    gated.calibrate(batches(), seed=seed)
    return gated


def _states(gated: GatedModel) -> Tensor:
    return torch.cat([gate.kept.flatten() for gate in gated.gates.values()])


def _scores(gated: GatedModel) -> Tensor:
    return torch.cat([gate.score.detach().flatten() for gate in gated.gates.values()])


def _train(gated: GatedModel, steps: int = 4) -> None:
    """A few optimiser steps of a loop of one's own."""
    gated.train()
    optimizer = torch.optim.AdamW(gated.parameter_groups(lr=1e-2, gate_lr=0.1))
    for done, (x, y) in enumerate((batches() * steps)[:steps], 1):
        optimizer.zero_grad()
        (F.cross_entropy(gated(x), y) + gated.config.training.penalty * gated.budget_penalty()).backward()
        optimizer.step()
        gated.step(done / steps)


# --- default


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_the_default_never_keeps_more_than_the_cubic_schedule(granularity: str) -> None:
    """After any step, however hard the scores push the other way; from ``reach`` on it is the budget."""
    gated = _gated("default", gates={"granularity": granularity}, training={"reach": 0.6})
    allowed, found = gated.allowance.allowed, []
    generator = torch.Generator().manual_seed(0)  # where small units rank first, a large one may not fit any more
    assert gated.kept == TOTAL
    for progress in (0.05, 0.2, 0.4, 0.55, 0.6, 0.8, 1.0):
        with torch.no_grad():
            for gate in gated.gates.values():
                gate.score.add_(torch.rand(gate.score.shape, generator=generator) * 5)
        gated.step(progress)
        target = allowed + math.floor((TOTAL - allowed) * (1 - min(progress / 0.6, 1)) ** 3)
        assert gated.kept <= target
        found.append(gated.kept)
        if granularity == "element":
            assert gated.kept >= target - 1  # a unit of the ReLU6 costs two
            assert found == sorted(found, reverse=True)
    assert found[0] > found[2] > allowed >= found[-1]


def test_the_default_takes_the_lowest_scores() -> None:
    """What goes had lower scores than all that stays."""
    gated = _gated("default")
    before = _scores(gated)
    gated.step(0.3)
    kept = _states(gated)
    assert 0 < int(kept.sum()) < len(kept)
    assert float(before[kept].min()) > float(before[~kept].max())


# --- autorep


def test_autoreps_scores_are_uniform() -> None:
    """From U(0, 1), by the seed: the largest distance of their distribution from it is small."""
    scores = _scores(_gated("autorep")).sort().values
    assert float((scores - (torch.arange(len(scores)) + 0.5) / len(scores)).abs().max()) < 0.1
    assert torch.equal(_scores(_gated("autorep")).sort().values, scores)
    assert not torch.equal(_scores(_gated("autorep", seed=1)).sort().values, scores)


def test_autoreps_penalty_is_the_density_above_the_budget() -> None:
    """max(0, density − budget density), whose gradient is softplus(score) · cost / gateable; 0 within the budget."""
    gated = _gated("autorep")
    penalty = gated.budget_penalty()
    assert penalty.item() == pytest.approx(1 - gated.allowance.allowed / TOTAL, abs=1e-6)
    penalty.backward()
    for gate in gated.gates.values():
        expected = F.softplus(gate.score.detach()) * gate.unit_cost / TOTAL
        torch.testing.assert_close(gate.score.grad, expected, rtol=1e-5, atol=1e-8)
    gated.set_gates_to("replaced")
    gated.zero_grad()
    within = gated.budget_penalty()
    assert within.item() == 0
    within.backward()
    assert all(gate.score.grad is None or not gate.score.grad.any() for gate in gated.gates.values())


def test_autoreps_gates_flip_by_the_band_alone() -> None:
    """Inside the band nothing flips, outside it does, and nothing is forced at the end."""
    gated = _gated("autorep", gates={"band": 0.1})
    gate = gated.gates["relu"]

    def after(score: float) -> tuple[bool, bool]:
        with torch.no_grad():
            gate.score.fill_(score)
        gated.step(1.0)
        return bool(gate.kept.all()), bool(gate.kept.any())

    assert after(-0.09) == (True, True)
    assert after(-0.11) == (False, False)
    assert after(0.09) == (False, False)
    assert after(0.11) == (True, True)
    assert gated.kept > gated.allowance.allowed


# --- snl


def test_snl_mixes_by_the_masks() -> None:
    """α·relu(x) + (1 − α)·x, at every gate; the binary states of the masks once it is projected."""
    gated = _gated("snl")
    with torch.no_grad():
        for gate in gated.gates.values():
            gate.score.copy_(torch.rand(gate.score.shape))
    x = torch.randn(3, *gated.gates["relu"].site.shape)
    gate = gated.gates["relu"]
    torch.testing.assert_close(gate(x), gate.score * x.relu() + (1 - gate.score) * x, rtol=1e-5, atol=1e-6)
    gated.project()
    assert gated.kept == gated.allowance.allowed
    assert set(gate.kept.flatten().tolist()) <= {True, False}
    assert torch.equal(gate(x), torch.where(gate.kept, x.relu(), x))


def test_snl_replaces_by_x_itself_and_trains_no_polynomial() -> None:
    """Coefficients (0, 1) at the start, and after steps of training that move everything else."""
    gated = _gated("snl")
    before = _scores(gated)
    _train(gated)
    for gate in gated.gates.values():
        identity = torch.tensor([[0.0], [1.0]]).expand(2, gate.site.channels)
        assert torch.equal(gate.coefficients.detach(), identity)
    groups = {group["name"]: group["params"] for group in gated.parameter_groups(lr=1.0, gate_lr=1.0)}
    assert groups["polynomials"] == []
    assert not torch.equal(_scores(gated), before)


def test_snl_counts_masks_above_a_hundredth() -> None:
    """α of 0.011 is kept, 0.009 and below are not; the largest stay when it is projected."""
    gated = _gated("snl")
    with torch.no_grad():
        for gate in gated.gates.values():
            gate.score.fill_(0.009)
        gated.gates["relu"].score[0] = 0.011
        gated.gates["relu"].score[1] = -1.0
    gated.step(0.1)
    assert gated.kept == 64
    assert gated.gates["relu"].kept[0].all()


def test_snls_penalty_is_the_sum_of_masks_until_the_budget_is_met() -> None:
    """Σ|α| while more is kept than allowed, 0 from then on."""
    gated = _gated("snl")
    assert gated.budget_penalty().item() == _scores(gated).numel()
    gated.set_gates_to("replaced")
    assert gated.budget_penalty().item() == 0


def test_snl_raises_the_penalty_when_the_count_is_stuck() -> None:
    """By a tenth at the end of an epoch in which the count did not fall by its share; not otherwise."""
    gated = _gated("snl", training={"epochs": 4})

    def growth(kept_share: float, progress: float) -> float:
        with torch.no_grad():
            for gate in gated.gates.values():
                gate.score.fill_(0.0)
                gate.score.flatten()[: math.ceil(gate.score.numel() * kept_share)] = 1.0
        gated.step(progress)
        return gated.method.state[0]

    assert growth(1.0, 0.25) == pytest.approx(1.0)  # there is nothing to compare with yet
    assert growth(1.0, 0.3) == pytest.approx(1.0)  # inside an epoch
    assert growth(1.0, 0.5) == pytest.approx(1.1)
    assert growth(0.2, 0.75) == pytest.approx(1.1)  # it fell
    assert growth(0.2, 1.0) == pytest.approx(1.21)


# --- chosen once


@pytest.mark.parametrize("budget", ["5%", "30%", "60%", 500])
def test_layerwise_keeps_whole_layers(budget: Any) -> None:
    """At most one site is kept in part, and the budget is met."""
    gated = _gated("layerwise", budget)
    parts = [0 < int(gate.kept.sum()) < gate.kept.numel() for gate in gated.gates.values()]
    assert sum(parts) <= 1
    assert gated.kept == gated.allowance.allowed


def test_random_is_fixed_by_the_seed() -> None:
    """The same states for the same seed, others for another one."""
    first = _states(_gated("random", "30%"))
    assert torch.equal(_states(_gated("random", "30%")), first)
    assert not torch.equal(_states(_gated("random", "30%", seed=1)), first)


def test_magnitude_keeps_what_replacing_would_change_most() -> None:
    """The order of the scores is that of E|a(x) − p(x)| per comparison, measured here on its own."""
    gated = _gated("magnitude", "30%")
    inputs: dict[str, Tensor] = {}
    handles = [
        gate.register_forward_hook(lambda gate, args, _: inputs.update({gate.site.name: args[0].detach()}))
        for gate in gated.gates.values()
    ]
    states = [gate.kept.clone() for gate in gated.gates.values()]
    gated.eval().set_gates_to("kept")
    x = torch.cat([x for x, _ in batches()])[:32]
    gated(x)
    for handle in handles:
        handle.remove()
    changes = []
    for name, gate in gated.gates.items():
        value = inputs[name]
        shape = [-1] + [1] * (value.dim() - 2)
        c0, c1, c2 = (c.view(shape) for c in gate.coefficients.detach())
        activation = value.clamp(0, 6) if gate.site.kind == "clip" else value.relu()
        changes.append(((activation - (c0 + c1 * value + c2 * value**2)).abs().mean(0) / gate.unit_cost).flatten())
    kept, change = torch.cat([state.flatten() for state in states]), torch.cat(changes)
    assert 0 < int(kept.sum()) < len(kept)
    assert float(change[kept].min()) >= float(change[~kept].max()) - 1e-6


@pytest.mark.parametrize("method", ["layerwise", "random", "magnitude"])
def test_what_was_chosen_once_does_not_move(method: str) -> None:
    """States and scores are what they were, while the weights are trained."""
    gated = _gated(method, "30%")
    states, scores, weight = _states(gated), _scores(gated), gated.network.get_parameter("conv1.weight").clone()
    _train(gated)
    assert torch.equal(_states(gated), states)
    assert torch.equal(_scores(gated), scores)
    assert not torch.equal(gated.network.get_parameter("conv1.weight"), weight)


# --- all of them


@pytest.mark.parametrize("budget", ["10%", 0])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_obeys_the_exactness_rule(method: str, budget: Any, tmp_path: Path) -> None:
    """Chosen by a settings file: the budget is spent exactly, and the module computes finite outputs."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(_config(method)))
    x = batches()[0][0]
    compiled = autorep_fx.transform(trained_norms(seeded(), x), budget, data=batches(), config=path)
    assert compiled.comparisons == compiled.plan.allowed == (52 if budget else 0)
    assert compiled.unspent == 0
    assert torch.isfinite(compiled.module(x)).all()


def test_methods_differ() -> None:
    """Each keeps other units than the others; AutoReP's start with random's scores, and move by the loss."""
    plans = set()
    for method in METHODS:
        gated = _gated(method, "30%", **({"training": {"penalty": 1e-3}} if method == "autorep" else {}))
        _train(gated)
        gated.project()
        plans.add(tuple(_states(gated).tolist()))
    assert len(plans) == len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_presets_fill_in_what_the_settings_leave_out(method: str) -> None:
    """They are all there, and what is said wins: in Python, in a pipeline file, and through its two forms."""
    for kind, extra in ((TransformConfig, {}), (PipelineConfig, {"model": {"zoo": "digits_resnet"}, "budget": "5%"})):
        config = parse_config({"training": {"method": method}, **extra}, kind)
        for section, values in PRESETS[method].items():
            for key, value in values.items():
                assert getattr(getattr(config, section), key) == value
        own = {
            "training": {"method": method, "penalty": 3.5, "gate_lr": 0.5}, "gates": {"init": "sensitivity"},
            "polynomials": {"degree": 2, "form": "fitted"}, "finetune": {"optimizer": "adamw"},
        }  # fmt: skip
        config = parse_config({**own, **extra}, kind)
        if isinstance(config, PipelineConfig):
            config = config.transform_config()
        for section, values in own.items():
            for key, value in values.items():
                assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize("method", METHODS)
def test_settings_read_back_the_same(method: str) -> None:
    """Written with all defaults filled in, and through the two forms."""
    config = parse_config(_config(method, finetune={"epochs": 3}))
    assert parse_config(yaml.safe_load(to_yaml(config))) == config
    pipeline = parse_config({**_config(method), "model": {"zoo": "digits_resnet"}, "budget": "5%"}, PipelineConfig)
    assert isinstance(pipeline, PipelineConfig)
    again = parse_config(yaml.safe_load(to_yaml(pipeline)), PipelineConfig)
    assert again == pipeline
    assert isinstance(again, PipelineConfig)
    assert again.transform_config() == pipeline.transform_config() == parse_config(_config(method))


@pytest.mark.parametrize("wrong", [{"training": {"method": "autorap"}}, {"training": 5}, {"training": ["snl"]},
                                   {"training": {"method": "snl"}, "gates": 3}])  # fmt: skip
def test_a_wrong_method_or_section_is_told(wrong: dict[str, Any]) -> None:
    """As any other wrong setting."""
    with pytest.raises(ConfigError, match="1 problem"):
        parse_config(wrong)
