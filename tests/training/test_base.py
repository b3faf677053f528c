"""Training of the plain model that a pipeline starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autorep_fx.config import BaseConfig, CheckpointConfig
from autorep_fx.errors import CheckpointError, NonFiniteError
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.base import train_base
from autorep_fx.training.history import Progress
from autorep_fx.training.objective import Objective
from autorep_fx.training.phases import BaseTraining
from nets import TinyNet, batches, seeded

CONFIG: dict[str, Any] = {"epochs": 4, "lr": 0.05, "warmup": 0.25}


def _train(model: nn.Module, **options: Any) -> list[Progress]:
    config = BaseConfig(**{**CONFIG, **options.pop("config", {})})
    return train_base(model, config, objective=Objective(), data=batches(), val_data=batches(2, seed=1), **options)


def _accuracy(model: nn.Module) -> float:
    x, y = (torch.cat(parts) for parts in zip(*batches(4, 64, seed=2), strict=True))
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_easy_task_is_learnt(optimizer: str) -> None:
    """From chance to nearly all of it; the model ends in eval mode and the generators are left alone."""
    model, state = seeded(), torch.get_rng_state()
    assert _accuracy(model.eval()) < 0.6
    lr = {"sgd": 0.05, "adamw": 0.01}[optimizer]
    history = _train(model, config={"epochs": 12, "optimizer": optimizer, "lr": lr})
    assert _accuracy(model) > 0.95
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    metrics = [point.metric for point in history if point.metric is not None]
    assert len(metrics) == 12
    assert {point.phase for point in history} == {"base"}


def test_the_best_epoch_is_what_remains() -> None:
    """Of equal ones the last; measured again, the model has the best metric of the history."""
    model = seeded()
    history = _train(model, config={"epochs": 6})
    x, y = (torch.cat(parts) for parts in zip(*batches(2, seed=1), strict=True))
    with torch.no_grad():
        found = float((model(x).argmax(1) == y).double().mean())
    assert found == max(point.metric for point in history if point.metric is not None)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_it_is_taken_up_where_it_stopped(tmp_path: Path, ema: float) -> None:
    """Inside an epoch, with and without an average: equal to the bit."""

    def kill(point: Progress) -> None:
        if point.step == 10:
            raise _KilledError

    options: dict[str, Any] = {"config": {"ema": ema}, "checkpoints": CheckpointConfig(every_steps=1)}
    whole, stopped, resumed = seeded(), seeded(), seeded()
    history = _train(whole, **options)
    with pytest.raises(_KilledError):
        _train(stopped, **options, checkpoint=tmp_path, callbacks=[kill])
    assert _train(resumed, **options, checkpoint=tmp_path, resume=True) == history
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    with pytest.raises(CheckpointError, match="another run"):
        _train(TinyNet(), **options, checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize(
    "change", [{"ema": 0.9}, {"label_smoothing": 0.2}, {"weight_decay": 0.1}, {"warmup": 0.0}, {"optimizer": "adamw"}]
)
def test_every_option_changes_the_result(change: dict[str, Any]) -> None:
    """Weights of two epochs."""
    one, other = seeded(), seeded()
    _train(one, config={"epochs": 2})
    _train(other, config={"epochs": 2, **change})
    assert not torch.equal(one.fc2.weight, other.fc2.weight)


def test_label_smoothing_is_torchs() -> None:
    """The same loss as torch's cross-entropy with smoothed labels."""
    model, (x, y) = seeded().eval(), batches()[0]
    phase = BaseTraining(model, BaseConfig(label_smoothing=0.2), Objective())
    expected = nn.functional.cross_entropy(model(x), y, label_smoothing=0.2)
    torch.testing.assert_close(phase.loss(model, ExampleInputs.of(x), y), expected, rtol=1e-6, atol=1e-6)


def test_only_matrices_and_kernels_are_decayed() -> None:
    """Biases and norms are not."""
    phase = BaseTraining(seeded(), BaseConfig(weight_decay=0.3), Objective())
    decays = {p.dim() > 1: group["weight_decay"] for group in phase.optimizer().param_groups for p in group["params"]}
    assert decays == {True: 0.3, False: 0.0}


def test_a_rate_that_is_too_high_is_told() -> None:
    """As an exploding loss."""
    with pytest.raises(NonFiniteError, match=r"at base"):
        _train(seeded(), config={"lr": 1e9, "warmup": 0.0})
