"""Sweeps: falling budgets, each from the one before, and the cheapest model that is good enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import autorep_fx
from autorep_fx.budget import Budget
from autorep_fx.cli import app
from autorep_fx.errors import BudgetInfeasibleError, CheckpointError, ConfigError
from nets import TinyNet, batches, trained_norms

FAST: dict[str, Any] = {"training": {"epochs": 1}, "finetune": {"epochs": 1}, "outputs": {"report": False}}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return trained_norms(TinyNet(), batches()[0][0])


def _sweep(model: nn.Module, **changes: Any) -> autorep_fx.Sweep:
    arguments = {"data": batches(), "val_data": batches(seed=1), "config": FAST, **changes}
    return autorep_fx.sweep(model, arguments.pop("budgets", ["0", "10%", "50%"]), **arguments)


def test_every_budget_is_met_and_the_winner_is_the_cheapest_good_one(model: nn.Module, tmp_path: Path) -> None:
    """Rows fall from the largest budget; the winner is exported and is what its row says."""
    found = _sweep(model, out_dir=tmp_path, max_metric_drop=1.0)
    total = found.original_comparisons
    assert [row.budget for row in found.rows] == ["50%", "10%", "0"]
    assert [row.comparisons for row in found.rows] == [total // 2, total // 10, 0]
    assert found.winner is found.rows[-1]
    assert found.best is not None
    assert found.best.comparisons == 0
    assert autorep_fx.count_comparisons(tmp_path / "best" / "model.onnx") == 0
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["winner"] == "0"
    assert [row["metric"] for row in written["rows"]] == [row.metric for row in found.rows]
    page = (tmp_path / "sweep.html").read_text()
    assert "<svg" in page
    assert f"{total // 10:,}" in page


def test_a_smaller_budget_keeps_a_part_of_what_the_larger_one_kept(model: nn.Module) -> None:
    """Without gate training in between, the kept units of a path are nested: each starts from the last."""
    plans = []
    for budgets in (["50%"], ["50%", "10%"]):
        config = {**FAST, "stages": [s for s in _STAGES if s != "train_gates"]}
        found = _sweep(model, budgets=budgets, config=config, max_metric_drop=1.0)
        assert found.best is not None
        plans.append({site.name: site.kept for site in found.best.plan.sites})
    for name, kept in plans[0].items():
        assert not bool((plans[1][name] & ~kept).any())


_STAGES = ("capture", "canonicalize", "prepare", "calibrate", "train_gates", "project", "finetune", "lower", "export")


def test_a_resumed_sweep_does_not_repeat_what_is_finished(model: nn.Module, tmp_path: Path) -> None:
    """A sweep that stopped in its last budget has, when it goes on, the rows of one that did not stop."""
    whole = _sweep(model, max_metric_drop=1.0)

    def stop(point: Any) -> None:
        nonlocal points
        points += 1
        if point.allowed == 0 and point.phase == "finetune":
            raise KeyboardInterrupt

    points = 0
    with pytest.raises(KeyboardInterrupt):
        _sweep(model, out_dir=tmp_path, max_metric_drop=1.0, callbacks=[stop])
    before, seen = points, []
    resumed = _sweep(model, out_dir=tmp_path, max_metric_drop=1.0, resume=True, callbacks=[seen.append])
    assert [(row.comparisons, row.metric) for row in resumed.rows] == [(r.comparisons, r.metric) for r in whole.rows]
    assert len(seen) < before
    assert {point.allowed for point in seen} == {0}


def test_a_search_returns_the_cheapest_within_the_drop(model: nn.Module) -> None:
    """``transform(max_metric_drop=)`` without a budget; a drop that nothing meets is told with the table."""
    compiled = autorep_fx.transform(model, max_metric_drop=1.0, data=batches(), val_data=batches(seed=1), config=FAST)
    assert compiled.comparisons == 0
    with pytest.raises(BudgetInfeasibleError, match=r"No budget that was tried[\s\S]*50%"):
        autorep_fx.transform(
            model, max_metric_drop=0.0, data=batches(), val_data=batches(seed=1), config=FAST, metric=_Falling()
        )


class _Falling:
    """A metric that is worse with every call, so that no budget is good."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        self.calls += 1
        return -float(self.calls)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"budget": "5%", "max_metric_drop": 0.1}, "Either a budget or max_metric_drop"),
    "no validation data": ({"max_metric_drop": 0.1}, "needs validation data and a metric"),
    "negative": ({"max_metric_drop": -1.0, "val_data": batches()}, "no less than 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_meant_is_refused(model: nn.Module, name: str) -> None:
    """Before any training."""
    arguments, text = REFUSALS[name]
    with pytest.raises(ConfigError, match=text):
        autorep_fx.transform(model, data=batches(), config=FAST, **arguments)


def test_a_sweep_goes_on_only_with_what_it_began_with(model: nn.Module, tmp_path: Path) -> None:
    """Other settings, weights, or larger budgets before one are refused; what was half written is made anew."""
    whole = _sweep(model, budgets=["10%", "0"], out_dir=tmp_path)
    for changes in ({"config": {**FAST, "training": {"epochs": 2}}}, {"seed": 1}, {"budgets": ["50%", "10%", "0"]}):
        with pytest.raises(CheckpointError, match="another run"):
            _sweep(model, **{"budgets": ["10%", "0"], **changes}, out_dir=tmp_path, resume=True)
    (tmp_path / "budget-10pc" / "finished.json").unlink()
    kept_fewer = {**FAST, "checkpoints": {"keep": 1}}  # how often it is saved is free to change
    again = _sweep(model, budgets=["10%", "0"], config=kept_fewer, out_dir=tmp_path, resume=True)
    assert [(row.comparisons, row.metric) for row in again.rows] == [(r.comparisons, r.metric) for r in whole.rows]


def test_a_sweep_that_was_stopped_is_not_begun_anew_over_its_checkpoint(model: nn.Module, tmp_path: Path) -> None:
    """As with a transformation: resume or another folder."""

    def stop(point: Any) -> None:
        if point.phase == "finetune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _sweep(model, out_dir=tmp_path, callbacks=[stop])
    with pytest.raises(ConfigError, match=r"earlier run[\s\S]*budget-50pc/checkpoint"):
        _sweep(model, out_dir=tmp_path)


def test_wrong_arguments_of_a_sweep_are_named(model: nn.Module) -> None:
    """By their own names."""
    with pytest.raises(TypeError, match="no argument confg"):
        _sweep(model, confg={})
    with pytest.raises(ConfigError, match="'1%'"):
        autorep_fx.transform(model, max_metric_drop="1%", data=batches(), val_data=batches())  # type: ignore[arg-type]


@pytest.mark.parametrize("budgets", ["50%", 12, Budget.parse("5%"), {"comparisons": 12}, []])
def test_a_sweep_takes_several_budgets(model: nn.Module, budgets: Any) -> None:
    """One alone would be read letter by letter, or not at all."""
    with pytest.raises(ConfigError, match="budgets"):
        autorep_fx.sweep(model, budgets, data=batches(), config=FAST)


def test_budgets_of_one_size_are_compiled_once(model: nn.Module) -> None:
    """Small shares of a small model are the same few comparisons."""
    found = autorep_fx.sweep(model, ["0.01%", "0%", 0], example_inputs=batches()[0][0])
    assert [(row.budget, row.comparisons) for row in found.rows] == [("0.01%", 0)]


def test_the_command_writes_a_page_and_the_winner(tmp_path: Path) -> None:
    """From a pipeline file that trains its own ReLU model first."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "model: {zoo: digits_resnet}\nbase: {epochs: 1, optimizer: adamw, lr: 3.0e-3}\nbudget: 5%\n"
        "training: {epochs: 1}\nfinetune: {epochs: 0}\noutputs: {report: false}\n"
    )
    command = ["sweep", "-c", str(file), "-o", str(tmp_path / "out"), "--budgets", "5%,0", "--max-drop", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "* the cheapest within 1" in result.output
    assert (tmp_path / "out" / "best" / "model.onnx").exists()
    assert (tmp_path / "out" / "relu.safetensors").exists()
