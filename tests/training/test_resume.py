"""Checkpoints: how many there are, and that a run which goes on from one ends as if it had not stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import autorep_fx
from autorep_fx.compiled import Compiled
from autorep_fx.config_io import load_pipeline
from autorep_fx.errors import CheckpointError, ConfigError, StoppedError
from autorep_fx.models_zoo.data import Batches, Split, compose, flip, random_shift
from autorep_fx.training.history import Progress
from nets import TinyNet, batches, seeded, trained_norms

TESTS = Path(__file__).parents[1]
STEPS = 4  # optimiser steps of an epoch of the batches below
CONFIG: dict[str, Any] = {
    "training": {"epochs": 2}, "finetune": {"epochs": 2, "ema": 0.9}, "calibration": {"samples": 32},
    "polynomials": {"refresh_every": 3, "refresh_until": 0.9},
    "checkpoints": {"every_steps": 1}, "outputs": {"onnx": False, "report": False},
}  # fmt: skip


class Dropping(TinyNet):
    """With dropout before the head, so that training draws from the global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


def _model() -> nn.Module:
    model = Dropping()
    model.load_state_dict(seeded().state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained_norms(model, batches()[0][0])


def _images() -> Batches:
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    return Batches(Split(x, y), 16, seed=1, augment=compose(random_shift(1), flip()))


def _loader() -> Any:
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)


class _KilledError(Exception):
    pass


def _at(step: int, action: Callable[[], None]) -> Callable[[Progress], None]:
    """A callback that acts when the point of an optimiser step is logged: before that step is saved."""

    def callback(point: Progress) -> None:
        if point.step == step:
            action()

    return callback


def _kill() -> None:
    raise _KilledError


def _run(data: Iterable[Any], folder: Path | None = None, **options: Any) -> Compiled:
    config = {**CONFIG, **options.pop("config", {})}
    return autorep_fx.transform(
        _model(), "10%", data=data, val_data=batches(seed=1), config=config, out_dir=folder, **options
    )  # fmt: skip


def _assert_same(one: Compiled, other: Compiled) -> None:
    assert one.plan.digest == other.plan.digest
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert list(one.history) == list(other.history)


def _saved(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoint").glob("step-*"))


@pytest.mark.parametrize(
    ("every", "minutes", "keep", "expected"),
    [(1, None, 3, [4, 5, 6]), (3, None, 5, [3, 4, 6]), (None, None, 1, [4]), (None, 60.0, 2, [4]),
     (None, 1e-9, 2, [5, 6])],
)  # fmt: skip
def test_checkpoints_are_saved_every_so_often_and_the_last_are_kept(
    tmp_path: Path, every: int | None, minutes: float | None, keep: int, expected: list[int]
) -> None:
    """And at the end of each epoch; killed in the 7th step, before it is saved."""
    checkpoints = {"every_steps": every, "every_minutes": minutes, "keep": keep}
    with pytest.raises(_KilledError):
        _run(batches(), tmp_path, config={"checkpoints": checkpoints}, callbacks=[_at(7, _kill)])
    assert _saved(tmp_path) == expected


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "batches": (_images, {}),
    "list": (batches, {}),
    "accumulated": (lambda: batches(count=8, size=8), {"execution": {"accumulate": 2}}),
    "uneven": (lambda: batches(count=7, size=8), {"execution": {"accumulate": 2}}),
    "autorep": (_images, {"training": {"epochs": 2, "method": "autorep"}}),
    "snl": (_images, {"training": {"epochs": 2, "method": "snl"}}),
    "random": (_images, {"training": {"epochs": 2, "method": "random", "features": 0.5}}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_taken_up_inside_an_epoch_ends_the_same(tmp_path: Path, case: str) -> None:
    """Killed in each phase, with dropout, an average of the weights, and augmentation: equal to the bit."""
    data, changes = CASES[case]
    whole = _run(data(), config=changes)
    assert whole.history[-1].step == 4 * STEPS
    for number, step in enumerate([STEPS + 2, 3 * STEPS + 3][: 1 if case in ("uneven", "autorep", "random") else 2]):
        folder = tmp_path / str(number)
        with pytest.raises(_KilledError):
            _run(data(), folder, config=changes, callbacks=[_at(step, _kill)])
        assert _saved(folder)[-1] == step - 1
        _assert_same(_run(data(), folder, config=changes, resume=True), whole)


def test_data_that_only_begin_epochs_go_on_from_the_last_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A shuffling DataLoader has no state: stop and resumption say so, and the result is the same for all that."""
    whole = _run(_loader())
    stop = _at(STEPS + 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match=r"cannot be taken up inside an epoch[\s\S]*step-000000004"):
        _run(_loader(), tmp_path, callbacks=[stop])
    assert _saved(tmp_path) == [STEPS]
    _assert_same(_run(_loader(), tmp_path, resume=True), whole)
    assert "goes on from the end of epoch 1" in caplog.text


def test_resuming_a_finished_run_says_that_it_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty folder is no matter for a warning."""
    first = _run(batches(), tmp_path, resume=True)
    assert "made anew" not in caplog.text
    _assert_same(_run(batches(), tmp_path, resume=True), first)
    assert f"{tmp_path} holds a finished result and no checkpoint to go on from: it is made anew" in caplog.text


def test_a_stop_inside_an_epoch_is_saved_where_it_is(tmp_path: Path) -> None:
    """SIGTERM, with data that can go on anywhere: the step that ran is the last one saved."""
    stop = _at(STEPS + 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    config = {"checkpoints": {"every_steps": None, "every_minutes": None}}
    with pytest.raises(StoppedError, match=r"step-000000006[\s\S]*resume=True"):
        _run(_images(), tmp_path, callbacks=[stop], config=config)
    assert signal.getsignal(signal.SIGTERM) is before
    assert _saved(tmp_path)[-1] == STEPS + 2
    _assert_same(_run(_images(), tmp_path, resume=True, config=config), _run(_images(), config=config))


def test_without_a_folder_a_stop_says_what_would_have_helped() -> None:
    """There is nothing to go on from."""
    with pytest.raises(StoppedError, match="out_dir="):
        _run(batches(), callbacks=[_at(2, lambda: os.kill(os.getpid(), signal.SIGTERM))])


def _damage(path: Path, how: str) -> None:
    """As a full disk or a bad copy leaves a file."""
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    ("file", "how"),
    [("model.safetensors", "cut"), ("progress.json", "cut"), ("loop.pt", "cut"), ("loop.pt", "zero"),
     ("averaged.safetensors", "missing"), ("model.safetensors", "zero"), ("model.safetensors", "flipped")],
)  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is taken, with a warning; where all are damaged, each is named."""
    with pytest.raises(_KilledError):
        _run(batches(), tmp_path, callbacks=[_at(7, _kill)])
    assert _saved(tmp_path) == [5, 6]
    _damage(tmp_path / "checkpoint" / "step-000000006" / file, how)
    if (file, how) == ("model.safetensors", "cut"):
        _assert_same(_run(batches(), tmp_path, resume=True), _run(batches()))
        assert "step-000000006 is damaged" in caplog.text
        return
    _damage(tmp_path / "checkpoint" / "step-000000005" / file, how)
    with pytest.raises(CheckpointError, match=r"step-000000006[\s\S]*step-000000005[\s\S]*Delete the folder"):
        _run(batches(), tmp_path, resume=True)


@pytest.mark.parametrize("change", [{"training": {"epochs": 3}}, {"execution": {"accumulate": 2}}])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Settings that the result depends on; how often it is saved is free to change."""
    with pytest.raises(_KilledError):
        _run(batches(), tmp_path, callbacks=[_at(7, _kill)])
    with pytest.raises(CheckpointError, match="another run"):
        _run(batches(), tmp_path, resume=True, config=change)
    with pytest.raises(ConfigError, match="resume=True"):
        _run(batches(), tmp_path)
    other = {"checkpoints": {"keep": 1}}
    _assert_same(_run(batches(), tmp_path, resume=True, config=other), _run(batches()))


def test_a_pipeline_goes_on_only_with_the_relu_model_of_its_recipe(tmp_path: Path) -> None:
    """A folder with an earlier run's checkpoint is refused before the ReLU model is trained; so is another recipe."""

    def kill(point: Progress) -> None:
        if point.phase == "train_gates" and point.epoch == 1:  # an epoch is logged before it is saved
            _kill()

    base, out = {"epochs": 1, "lr": 0.01}, tmp_path / "out"
    config = load_pipeline(pipeline(tmp_path, base=base, training={"epochs": 2}))
    with pytest.raises(_KilledError):
        autorep_fx.run_pipeline(config, out, callbacks=[kill])
    assert len((out / "relu-training.jsonl").read_text().splitlines()) > 0
    before = (out / "relu.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="earlier run"):
        autorep_fx.run_pipeline(config, out)
    other = load_pipeline(pipeline(tmp_path, base={**base, "lr": 0.02}, training={"epochs": 2}))
    with pytest.raises(CheckpointError, match=r"The ReLU model .* is of another run"):
        autorep_fx.run_pipeline(other, out, resume=True)
    assert (out / "relu.safetensors").read_bytes() == before
    whole = autorep_fx.run_pipeline(config, tmp_path / "whole")
    _assert_same(autorep_fx.run_pipeline(config, out, resume=True), whole)


# --- real processes


def pipeline(folder: Path, **changes: Any) -> Path:
    """A pipeline file whose training takes long enough to be stopped."""
    path = folder / "pipeline.yaml"
    settings = {
        "model": {"factory": "nets:seeded"}, "data": {"name": "nets:splits"}, "budget": "10%",
        **CONFIG, "training": {"epochs": 25}, "checkpoints": {"every_steps": 3, "keep": 2}, **changes,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def _start(config: Path, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-m", "autorep_fx", "transform", "--config", str(config), "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Until a checkpoint of this step or a later one is there."""
    end = time.monotonic() + 120
    while not any(saved >= step for saved in _saved(out)):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_process_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """By kill -9 when the second checkpoint appears; the rest is run here."""
    config, out = pipeline(tmp_path), tmp_path / "out"
    process = _start(config, out)
    try:
        _wait_for(process, out, 6)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "plan.json").exists()
    _assert_same(autorep_fx.run_pipeline(config, out, resume=True), autorep_fx.run_pipeline(config, tmp_path / "whole"))


def test_a_process_that_is_asked_to_stop_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGTERM: exit code 143, a message without a traceback, the state saved at the step that was reached."""
    config, out = pipeline(tmp_path, checkpoints={"every_steps": None, "every_minutes": None}), tmp_path / "out"
    process = _start(config, out)
    try:
        _wait_for(process, out, STEPS)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Training was asked to stop" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    logged = yaml.safe_load((out / "training.jsonl").read_text().splitlines()[-1])["step"]
    assert _saved(out)[-1] >= logged >= STEPS
