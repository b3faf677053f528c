"""Budgets in bytes, messages and seconds: the file that is written costs no more, by a prediction of its own."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import autorep_fx
from autorep_fx.budget import Budget
from autorep_fx.cli import app
from autorep_fx.cost.network import Network
from autorep_fx.cost.onnx_count import load_model
from autorep_fx.cost.predict import Prediction, predict
from autorep_fx.cost.primitives import secure_work
from autorep_fx.cost.profile import load_profile
from autorep_fx.errors import BudgetError, BudgetInfeasibleError, ConfigError

# Polynomials that cost nothing, so that what a site is charged is its comparisons alone.
_LINEAR = {"polynomials": {"degree": 1}}
_UNCHECKED = {"protocol": "cryptflow2", "allow_unverified": True}


def _model(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), activation(), nn.Conv2d(4, 8, 3, stride=2), activation(), nn.Flatten(),
        nn.Linear(72, 16), activation(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def _inputs(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _predicted(compiled: autorep_fx.Compiled, folder: Path, protocol: str) -> Prediction:
    """Of the exported file, read anew."""
    path = folder / "model.onnx"
    compiled.export(path)
    return predict(secure_work(load_model(path), 1, protocol=protocol), protocol, load_profile().protocol(protocol))


def _kept(compiled: autorep_fx.Compiled) -> list[int]:
    return [site.kept_elements for site in compiled.plan.sites]


@pytest.mark.parametrize(
    ("protocol", "limit", "price", "granularity"),
    [("semi2k", 40_000, 144 + 40, "element"), ("aby3", 55_000, 172 + 52, "channel")],
)
def test_bytes_are_kept_to_and_used(protocol: str, limit: int, price: int, granularity: str, tmp_path: Path) -> None:
    """The file costs at most the limit; what is left is less than a unit more, written back, would cost."""
    config = {"gates": {"granularity": granularity}}
    budget = Budget.bytes(limit, protocol=protocol)
    compiled = autorep_fx.transform(_model(), budget, example_inputs=_inputs(), config=config)
    spent = _predicted(compiled, tmp_path, protocol).bytes
    assert spent is not None
    unit = {"element": 1, "channel": 64}[granularity]
    assert limit - price * unit < spent <= limit
    assert 0 < compiled.comparisons < compiled.original_comparisons
    assert compiled.unspent == 0 or granularity == "channel"
    assert any("predicted to cost" in note for note in compiled.notes)
    assert compiled.plan.budget == budget


def test_messages_open_whole_sites(tmp_path: Path) -> None:
    """Elements cost no message: a site is kept whole or not at all.

    Four linear layers take two messages each and a site 8. Where nothing is kept between two layers, they are merged.
    """
    found = []
    for limit in (8, 18, 32):
        budget = Budget.messages(limit, protocol="semi2k")
        compiled = autorep_fx.transform(_model(), budget, example_inputs=_inputs(), config=_LINEAR)
        spent = _predicted(compiled, tmp_path, "semi2k").messages
        assert spent is not None
        assert spent <= limit
        assert all(site.kept_elements in (0, site.elements) for site in compiled.plan.sites)
        found.append(sum(number > 0 for number in _kept(compiled)))
    assert found == [0, 1, 3]


def test_seconds_count_latency_and_bandwidth(tmp_path: Path) -> None:
    """Where latency rules, few sites compare, each of them wholly; where bandwidth does, all of them do in part."""
    link = "1Gbps,40ms"
    slow = autorep_fx.transform(_model(), f"900ms@semi2k/{link}", example_inputs=_inputs(), config=_LINEAR)
    spent = _predicted(slow, tmp_path, "semi2k").seconds(Network.parse(link))
    assert spent is not None
    assert spent <= 0.9
    assert all(site.kept_elements in (0, site.elements) for site in slow.plan.sites)
    assert 0 < sum(number > 0 for number in _kept(slow)) < 3
    narrow = autorep_fx.transform(_model(), "230ms@semi2k/1Mbps,0.01ms", example_inputs=_inputs())
    spent = _predicted(narrow, tmp_path, "semi2k").seconds(Network.parse("1Mbps,0.01ms"))
    assert spent is not None
    assert 0.225 < spent <= 0.23
    assert min(_kept(narrow)) > 0


def test_a_trained_model_is_within_its_bytes(tmp_path: Path) -> None:
    """After the fine-tuning too; the saved plan states the budget and the run can be loaded again."""
    batches = [(_inputs(), torch.arange(16) % 4) for _ in range(4)]
    config = {"training": {"epochs": 1}, "finetune": {"epochs": 1}}
    budget = Budget.bytes("40kB", protocol="semi2k")
    compiled = autorep_fx.transform(_model(), budget, data=batches, config=config, out_dir=tmp_path / "out")
    spent = _predicted(compiled, tmp_path, "semi2k").bytes
    assert spent is not None
    assert 39_800 < spent <= 40_000
    loaded = autorep_fx.load(tmp_path / "out", _model(), example_inputs=_inputs())
    assert isinstance(loaded, autorep_fx.Compiled)
    assert loaded.plan.budget == budget
    assert loaded.comparisons == compiled.comparisons


def test_what_a_budget_settles_is_part_of_the_state() -> None:
    """A run that is taken up has the closed sites and the allowance that its calibration settled."""
    budget = Budget.parse("900ms@semi2k/1Gbps,40ms")
    first, second = (autorep_fx.prepare(_model(), budget, example_inputs=_inputs(), config=_LINEAR) for _ in range(2))
    autorep_fx.calibrate(first, _batches())
    second.load_state_dict(first.state_dict())
    assert second.allowance == first.allowance
    own = [gate.own_allowed for gate in second.gates.values()]
    assert own == [gate.own_allowed for gate in first.gates.values()]
    assert 0 in own
    autorep_fx.project(second)
    assert second.kept == second.allowance.allowed > 0


def _batches() -> list[Any]:
    return [(_inputs(), torch.arange(16) % 4)]


def test_what_cannot_be_held_is_refused() -> None:
    """Too little, too much, unknown protocols and networks, unverified constants, operations without a price."""
    model, x = _model(), _inputs()
    cases = [
        ("1kB@semi2k", BudgetInfeasibleError, "everything replaced|every site replaced"),
        ("9MB@semi2k", BudgetError, "above the"),
        ("9MB@semi3k", ConfigError, "semi2k"),
        ("1s@semi2k/moon", ConfigError, "no network"),
        ("9MB@delphi-gc", BudgetError, "unverified"),
        ({**_UNCHECKED, "bytes": 9}, BudgetError, "does not tell what product"),
        ({**_UNCHECKED, "seconds": 9, "network": "lan"}, BudgetError, "how long"),
    ]
    for budget, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            autorep_fx.transform(model, budget, example_inputs=x)
    with pytest.raises(BudgetError, match="Sigmoid"):
        autorep_fx.transform(_model(nn.SiLU), "40kB@semi2k", example_inputs=x)


def test_a_loop_of_ones_own_is_held_to_its_budget() -> None:
    """Where training after the projection makes the lowered graph dearer, lowering says so and what to call."""
    gated = autorep_fx.prepare(_model(), "46kB@semi2k", example_inputs=_inputs())
    autorep_fx.calibrate(gated, _batches())
    autorep_fx.project(gated)
    for gate in gated.gates.values():
        rows = gate.coefficients.detach().clone()
        rows[2] *= 1e-4
        gate.set_coefficients(rows)
    with pytest.raises(BudgetInfeasibleError, match="fit_to_cost"):
        autorep_fx.lower(gated)
    gated.fit_to_cost()
    compiled = autorep_fx.lower(gated)
    assert any("predicted to cost" in note for note in compiled.notes)


def test_a_site_has_no_budget_in_bytes() -> None:
    """Its own budget is in comparisons, and does not go with what a query costs."""
    with pytest.raises(ConfigError, match="go with a budget in comparisons"):
        autorep_fx.transform(_model(), "40kB@semi2k", example_inputs=_inputs(), config={"sites": {"1": {"budget": 16}}})
    with pytest.raises(ConfigError, match="whole model"):
        autorep_fx.transform(
            _model(), "5%", example_inputs=_inputs(), config={"sites": {"1": {"budget": "1kB@semi2k"}}}
        )


def test_where_squares_cost_more_than_comparisons_the_rest_is_linear(tmp_path: Path) -> None:
    """Under CHEETAH; degrees of single sites stay."""
    budget = Budget.bytes("2.53MB", protocol="cheetah")
    compiled = autorep_fx.transform(_model(), budget, example_inputs=_inputs())
    spent = _predicted(compiled, tmp_path, "cheetah").bytes
    assert spent is not None
    assert 2_515_000 < spent <= 2_530_000
    assert {site.degree for site in compiled.plan.sites} == {1}
    assert any("replaced units are linear" in note for note in compiled.notes)
    with pytest.raises(BudgetError, match=r"above|below"):
        autorep_fx.transform(_model(), "9GB@cheetah", example_inputs=_inputs())
    squares = autorep_fx.prepare(_model(), budget, example_inputs=_inputs(), config={"sites": {"*": {"degree": 2}}})
    assert {gate.degree for gate in squares.gates.values()} == {2}


def test_the_profile_is_the_one_that_is_named(tmp_path: Path) -> None:
    """With comparisons at twice the price about half of them are left."""
    stated = json.loads((files("autorep_fx.cost") / "profiles" / "spu-0.9.5.json").read_text())
    stated["protocols"]["semi2k"]["operations"]["compare"]["bytes"] *= 2
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(stated))
    budget = Budget.bytes("30kB", protocol="semi2k")
    cheap, dear = (
        autorep_fx.transform(_model(), budget, example_inputs=_inputs(), config={**_LINEAR, **extra})
        for extra in ({}, {"cost": {"profile": str(path)}})
    )
    assert 0.4 < dear.comparisons / cheap.comparisons < 0.7


def test_budgets_in_bytes_in_a_sweep() -> None:
    """From the largest to the smallest, one unit under one protocol; mixtures have no order."""
    batches = _batches()
    config = {"training": {"epochs": 1}, "finetune": {"epochs": 0}}
    found = autorep_fx.sweep(_model(), ["35kB@semi2k", "45kB@semi2k"], data=batches, config=config)
    assert [row.budget for row in found.rows] == ["45kB@semi2k", "35kB@semi2k"]
    assert found.rows[0].comparisons > found.rows[1].comparisons > 0
    with pytest.raises(ConfigError, match="order"):
        autorep_fx.sweep(_model(), ["35kB@semi2k", "5%"], data=batches, config=config)


def test_on_the_command_line(tmp_path: Path) -> None:
    """A pipeline file takes a cost as its budget; what cannot be met is told before anything is trained."""
    path = tmp_path / "pipeline.yaml"
    stated = "model: {zoo: digits_resnet}\nbase: {epochs: 999}\nbudget: {bytes: %s, protocol: semi2k}\n"
    path.write_text(stated % "500kB")
    result = CliRunner().invoke(app, ["transform", "--config", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    found = re.search(r"500 kB a query under semi2k: at most ([\d,]+) comparisons .* as measured", result.output)
    assert found is not None, result.output
    assert 100 < int(found[1].replace(",", "")) < 4_480
    path.write_text(stated % "9MB")
    result = CliRunner().invoke(app, ["transform", "--config", str(path), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, BudgetError)
    assert "above the" in str(result.exception)
