"""transform: budgets are spent exactly, runs repeat, nothing of the caller's changes, wrong input is told."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autorep_fx
from autorep_fx.errors import BudgetError, ConfigError, DataError, NonFiniteError, OutputError
from autorep_fx.models_zoo.data import Batches, Split
from nets import TinyNet, batches, trained_norms

FAST = {"training": {"epochs": 2}, "finetune": {"epochs": 1}, "calibration": {"samples": 32}}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return trained_norms(TinyNet(), batches()[0][0])


@pytest.mark.parametrize("granularity", ["element", "channel", "site"])
@pytest.mark.parametrize("budget", ["0%", "5%", 300, "100%"])
def test_the_exactness_rule_holds(model: nn.Module, budget: Any, granularity: str) -> None:
    """Never above the budget; what is unspent is smaller than the smallest usable unit."""
    compiled = autorep_fx.transform(
        model, budget, data=batches(), config={**FAST, "gates": {"granularity": granularity}}
    )
    plan = compiled.plan
    assert compiled.comparisons == plan.comparisons <= plan.allowed + plan.fixed_comparisons
    unused = [s.comparisons_per_element * s.elements // s.kept.size for s in plan.sites if not s.kept.all()]
    assert compiled.unspent == plan.allowed - compiled.comparisons
    assert not unused or compiled.unspent < min(unused)
    if granularity == "element":
        assert compiled.unspent == 0


def test_two_runs_are_identical_and_another_seed_is_not(model: nn.Module) -> None:
    """Same seed, same plan, bit for bit, whatever state the global generators are in."""
    first = autorep_fx.transform(model, "10%", data=batches(), config=FAST, seed=3)
    torch.manual_seed(99), random.seed(99)
    assert autorep_fx.transform(model, "10%", data=batches(), config=FAST, seed=3).plan.digest == first.plan.digest
    random_gates = {**FAST, "gates": {"init": "random"}}
    digests = {
        autorep_fx.transform(model, "10%", data=batches(), config=random_gates, seed=s).plan.digest for s in (0, 1)
    }
    assert len(digests) == 2


def test_nothing_of_the_callers_changes(model: nn.Module) -> None:
    """Weights, buffers, modes, and the global generators are what they were."""
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    autorep_fx.transform(model, "10%", data=batches(), config=FAST)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shuffled_loader_is_the_seeds(model: nn.Module, tmp_path: Path) -> None:
    """It draws from the global generator: which is left as it was, and decides on nothing."""
    loader = DataLoader(TensorDataset(*map(torch.cat, zip(*batches(), strict=True))), batch_size=16, shuffle=True)
    files = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        compiled = autorep_fx.transform(model, "10%", data=loader, val_data=loader, config=FAST, seed=3)
        assert torch.equal(torch.random.get_rng_state(), before)
        compiled.export(tmp_path / f"{state}.onnx")
        files.append((tmp_path / f"{state}.onnx").read_bytes())
    assert files[0] == files[1]


def test_training_recovers_what_replacing_everything_costs() -> None:
    """On a task that the model has learnt, a purely polynomial model ends as good as the ReLU model."""
    torch.manual_seed(0)
    data, held_out = batches(count=8, size=32), batches(count=4, size=64, seed=1)
    model = TinyNet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x, y in data * 6:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    compiled = autorep_fx.transform(model, "0%", data=data, val_data=held_out)
    assert compiled.metrics["original, torch"] > 0.95
    assert compiled.metrics["compiled, torch"] > compiled.metrics["original, torch"] - 0.02
    assert compiled.metric_name == "accuracy"
    kept = [point.kept for point in compiled.history if point.phase == "train_gates"]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 0


def test_progress_is_reported_to_callbacks(model: nn.Module) -> None:
    """Steps rise to their total, phases come in order, validation is in the last point of each epoch."""
    points: list[Any] = []
    autorep_fx.transform(model, "10%", data=batches(), val_data=batches(seed=1), config=FAST, callbacks=[points.append])
    steps = [point.step for point in points]
    assert steps == sorted(steps)
    assert steps[-1] == points[-1].steps == 12
    assert [p.phase for p in points if p.metric is not None] == ["train_gates", "train_gates", "finetune"]


def test_mapping_batches_custom_loss_metric_and_forward(model: nn.Module) -> None:
    """Mapping batches with targets under 'labels', a forward of one's own, a loss and a metric of one's own."""

    class Named(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(image)}

    data = [{"image": x, "labels": y} for x, y in batches()]

    def negative_loss(outputs: Any, targets: Any) -> float:
        return -float(nn.functional.cross_entropy(outputs["logits"], targets))

    compiled = autorep_fx.transform(
        Named(model), "10%", data=data, val_data=data, config=FAST,
        loss=lambda outputs, targets: nn.functional.cross_entropy(outputs["logits"], targets),
        metric=negative_loss, forward=lambda module, inputs: module(**inputs),
    )  # fmt: skip
    assert compiled.metric_name == "negative_loss"
    assert set(compiled.module(image=data[0]["image"])) == {"logits"}
    with pytest.raises(ConfigError, match="cross-entropy only for one output"):
        autorep_fx.transform(Named(model), "10%", data=data, config=FAST)


class _InterruptError(Exception):
    pass


def test_an_interrupted_run_resumes_to_the_same_plan(model: nn.Module, tmp_path: Path) -> None:
    """Stopped in any phase and resumed: plan and weights are bit-equal to those of the run that was not stopped."""
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))

    def data() -> Batches:
        return Batches(Split(x, y), 16, seed=1)

    config = {**FAST, "finetune": {"epochs": 2}}
    whole = autorep_fx.transform(model, "10%", data=data(), val_data=batches(seed=1), config=config)

    for stop_at in (6, 10, 14):

        def stop(point: Any, stop_at: int = stop_at) -> None:
            if point.step >= stop_at:
                raise _InterruptError

        folder = tmp_path / str(stop_at)
        with pytest.raises(_InterruptError):
            autorep_fx.transform(
                model, "10%", data=data(), val_data=batches(seed=1), config=config, out_dir=folder, callbacks=[stop]
            )
        assert len(list((folder / "checkpoint").glob("step-*/progress.json"))) in (1, 2)
        assert not (folder / "plan.json").exists()
        with pytest.raises(ConfigError, match="resume=True"):
            autorep_fx.transform(model, "10%", data=data(), config=config, out_dir=folder)
        resumed = autorep_fx.transform(
            model, "10%", data=data(), val_data=batches(seed=1), config=config, out_dir=folder, resume=True
        )
        assert resumed.plan.digest == whole.plan.digest
        assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())
        assert [p.step for p in resumed.history] == [p.step for p in whole.history]
        assert not (folder / "checkpoint").exists()


def _generator() -> Iterator[Any]:
    yield from batches()


def _nan_target() -> list[Any]:
    data = batches()
    data[2][0][0, 0, 0, 0] = float("nan")
    return data


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "neither data nor example": ({}, DataError, "neither data nor an example input"),
    "one-shot iterator": ({"data": _generator()}, DataError, "only once"),
    "no iterable": ({"data": 3}, DataError, "iterable of batches"),
    "empty": ({"data": [], "example_inputs": torch.randn(2, 1, 8, 8)}, DataError, "holds no batch"),
    "no targets": ({"data": [torch.randn(4, 1, 8, 8)]}, DataError, r"\(inputs, targets\) or a mapping"),
    "mapping without targets": ({"data": [{"x": torch.randn(4, 1, 8, 8)}]}, DataError, "labels, label, targets"),
    "NaN in an example": ({"example_inputs": torch.full((2, 1, 8, 8), torch.nan)}, DataError, "not finite"),
    "NaN in a batch": ({"data": _nan_target()}, DataError, "not finite"),
    "another shape": ({"example_inputs": torch.randn(2, 3, 8, 8)}, DataError, "fails on the example inputs"),
    "no sample": ({"example_inputs": torch.randn(0, 1, 8, 8)}, DataError, "no sample"),
    "resume without a folder": (
        {"example_inputs": torch.randn(2, 1, 8, 8), "resume": True}, ConfigError, "nothing to resume"
    ),
    "unknown setting": (
        {"example_inputs": torch.randn(2, 1, 8, 8), "config": {"gates": {"granularty": 1}}}, ConfigError, "granularity"
    ),
    "contradiction": (
        {"example_inputs": torch.randn(2, 1, 8, 8), "config": {"budget": "5%", "seed": 3}, "seed": 4},
        ConfigError, r"the settings ask for 5%[\s\S]*seed 3",
    ),
    "no validation data": ({"data": batches(), "val_data": []}, DataError, "val_data holds no batch"),
    "a seed of letters": ({"data": batches(), "config": {"seed": "a"}}, ConfigError, "The seed is an integer"),
    "a broken seed": ({"data": batches(), "config": {"seed": 1.7}}, ConfigError, "The seed is an integer"),
    "no CUDA": ({"data": batches(), "device": "tpu"}, autorep_fx.errors.DeviceError, "cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_a_typed_error(model: nn.Module, name: str) -> None:
    """Each says what was wrong, and what to do."""
    arguments, error, text = REFUSALS[name]
    with pytest.raises(error, match=text) as caught:
        autorep_fx.transform(model, "10%", **arguments)
    assert caught.value.fix or "\n" in caught.value.what


def test_a_batch_of_another_shape_in_the_middle_is_told(model: nn.Module) -> None:
    """A batch whose samples have another shape than the model was captured with names both shapes."""
    data = [*batches(), (torch.randn(4, 1, 9, 9), torch.zeros(4, dtype=torch.int64))]
    for samples in (32, 10_000):  # it is beyond those that are calibrated on, and among them
        with pytest.raises(DataError, match=r"\(1, 9, 9\)[\s\S]*\(1, 8, 8\)"):
            autorep_fx.transform(model, "10%", data=data, config={**FAST, "calibration": {"samples": samples}})


def test_a_loss_that_is_nan_stops_with_the_last_good_state(model: nn.Module, tmp_path: Path) -> None:
    """The error names phase and checkpoint, and no result is written."""
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return nn.functional.cross_entropy(outputs, targets) * (float("nan") if calls > 5 else 1.0)

    with pytest.raises(NonFiniteError, match=r"The loss is nan at train_gates[\s\S]*checkpoint"):
        autorep_fx.transform(model, "10%", data=batches(), config=FAST, loss=loss, out_dir=tmp_path)
    assert list((tmp_path / "checkpoint").glob("step-*/model.safetensors"))
    assert not (tmp_path / "plan.json").exists()


def test_an_unwritable_output_is_told_before_any_work(model: nn.Module, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        autorep_fx.transform(model, "10%", data=batches(), out_dir=tmp_path / "file" / "out")


def test_budgets_are_checked_against_the_model(model: nn.Module) -> None:
    """12900.0 and True are refused with the spellings; above the total is refused with the total."""
    for wrong in (True, 12900.0, -1, "five"):
        with pytest.raises(BudgetError, match="Write an integer"):
            autorep_fx.transform(model, wrong, example_inputs=torch.randn(2, 1, 8, 8))
    with pytest.raises(BudgetError, match="524"):
        autorep_fx.transform(model, 1000, example_inputs=torch.randn(2, 1, 8, 8))


def test_validation_data_that_cannot_be_measured_are_a_warning() -> None:
    """Targets that are no class indices: the accuracy would be missing without a word."""
    floats = [(x, y.float()) for x, y in batches()]
    config = {"training": {"epochs": 1}, "finetune": {"epochs": 1}}
    compiled = autorep_fx.transform(TinyNet().eval(), "10%", data=batches(), val_data=floats, config=config)
    assert not compiled.metrics
    assert any(text.startswith("nothing was measured on the validation data") for text in compiled.warnings)


BAD_MEASURES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "text": ({"metric": lambda outputs, y: "good"}, ConfigError, "The metric is one number"),
    "tensor": ({"metric": lambda outputs, y: outputs}, ConfigError, r"one number\.\s.*float32 \(16, 4\)"),
    "nan": ({"metric": lambda outputs, y: float("nan")}, NonFiniteError, "The metric of the untouched model is nan"),
    "labels": ({"val_data": [(x, y + 5) for x, y in batches()]}, DataError, r"Use class indices from 0 to 3"),
    "no function": ({"metric": 3, "loss": "mse", "callbacks": print}, ConfigError, r"metric= is 3[\s\S]*callbacks="),
}


@pytest.mark.parametrize("name", BAD_MEASURES)
def test_what_cannot_be_measured_is_refused_before_training(model: nn.Module, name: str) -> None:
    """Metrics that are no number, labels beyond the classes, arguments that cannot be called."""
    arguments, error, text = BAD_MEASURES[name]
    points: list[Any] = []
    arguments = {"val_data": batches(), "callbacks": [points.append], **arguments}
    with pytest.raises(error, match=text):
        autorep_fx.transform(model, "10%", data=batches(), config=FAST, **arguments)
    assert not points


def test_a_metric_that_becomes_nan_is_passed_over_with_a_warning(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    """It chooses no epoch, and is not reported as a figure."""
    calls = 0

    def metric(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        nonlocal calls
        calls += 1
        return 0.5 if calls <= len(batches()) else float("nan")

    points: list[Any] = []
    compiled = autorep_fx.transform(
        model, "10%", data=batches(), val_data=batches(), metric=metric, config=FAST, callbacks=[points.append]
    )
    assert "the metric is nan after epoch 1" in caplog.text
    assert all(point.metric is None for point in points)
    assert not compiled.metrics
    assert "metric of the compiled model is nan on the validation data" in compiled.warnings


def test_a_model_that_became_another_one_is_a_warning() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)).eval(), torch.randn(16, 8)
    near = autorep_fx.transform(model, "100%", example_inputs=x)
    far = autorep_fx.transform(model, "100%", example_inputs=20 * x, config={"substitute": {"silu": "mish"}})
    worst = autorep_fx.transform(model, "0", example_inputs=x, config={"substitute": {"silu": "softplus"}})
    said = [any("is another one" in text for text in c.warnings) for c in (near, far, worst)]
    assert said == [False, False, True]
