"""Free heights and widths, fixed batches, and inputs that the settings say are not batched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import autorep_fx
from autorep_fx.cli import main
from autorep_fx.config import TransformConfig
from autorep_fx.errors import AutorepError, ConfigError, DataError, UnsupportedModelError
from autorep_fx.models_zoo import create
from autorep_fx.runtime import Session
from nets import trained_norms

FREE: dict[str, Any] = {"capture": {"dynamic_size": True}, "gates": {"granularity": "channel"}}
FIXED: dict[str, Any] = {"capture": {"dynamic_batch": False}}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class UNet(nn.Module):
    """Halves twice and doubles back: sizes are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.down(x))
        z = torch.relu(self.up(F.max_pool2d(y, 4)))
        return torch.cat([y, F.interpolate(z, scale_factor=4)], 1)


class TwoImages(nn.Module):
    """Images of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.a(x)).mean((2, 3)) + F.gelu(self.b(y)).mean((2, 3))


class Tokens(nn.Module):
    """Patches, attention, and the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1)


class Call(nn.Module):
    """A convolution, and a function of its result."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(F.relu(self.conv(x)))


def convolutions() -> nn.Module:
    """Convolutions alone: an image in, an image out."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.PReLU(6), nn.Conv2d(6, 2, 1),
    )  # fmt: skip


# Name → model, example, other sizes (per input).
MODELS: dict[str, tuple[Any, tuple[Tensor, ...], list[tuple[tuple[int, int], ...]]]] = {
    "resnet": (
        lambda: trained_norms(create("digits_resnet"), noise(16, 1, 16, 16)),
        (noise(4, 1, 16, 16),),
        [((8, 8),), ((31, 17),), ((9, 40),)],
    ),
    "convolutions": (
        lambda: trained_norms(convolutions(), noise(8, 3, 12, 10)),
        (noise(3, 3, 12, 10),),
        [((5, 7),), ((24, 33),)],
    ),
    "unet": (lambda: UNet().eval(), (noise(2, 3, 16, 12),), [((8, 8),), ((20, 36),)]),
    "two images": (
        lambda: TwoImages().eval(), (noise(2, 3, 9, 12), noise(2, 3, 20, 8, seed=1)), [((7, 7), (6, 30))]
    ),
    "tokens": (lambda: Tokens().eval(), (noise(2, 3, 16, 16),), [((8, 24),), ((20, 12),)]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "budget"), [*((name, "50%") for name in MODELS), ("convolutions", "100%"), ("tokens", "100%")]
)
def test_other_sizes_agree(name: str, budget: str, tmp_path: Path) -> None:
    """At other sizes onnxruntime and the lowered module agree; with everything kept they are the model."""
    make, example, others = MODELS[name]
    model = make()
    compiled = autorep_fx.transform(model, budget, example_inputs=example, config=FREE)
    verification = compiled.export(tmp_path / "m.onnx")
    assert verification.comparisons == compiled.comparisons == compiled.plan.comparisons
    assert len(verification.sizes) == 2
    session = Session(tmp_path / "m.onnx")
    for sizes in (tuple(x.shape[2:] for x in example), *others):
        inputs = [noise(3, x.shape[1], *size, seed=7) for x, size in zip(example, sizes, strict=True)]
        with torch.no_grad():
            outputs, expected = compiled(*inputs), model(*inputs)
        np.testing.assert_allclose(session(*(x.numpy() for x in inputs)), outputs.numpy(), rtol=0, atol=1e-5)
        if budget == "100%":
            torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"degree": 0}, {"degree": 1}])
def test_everything_replaced(options: dict[str, Any], tmp_path: Path) -> None:
    """Constants in place of activations and pools take the size of the input too."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3))
    config = {**FREE, "gates": {"granularity": "channel", "pools": True}, "polynomials": options}
    compiled = autorep_fx.transform(model, "10%", example_inputs=noise(2, 3, 16, 16), config=config)
    compiled.export(tmp_path / "m.onnx")
    x = noise(2, 3, 11, 30)
    with torch.no_grad():
        np.testing.assert_allclose(Session(tmp_path / "m.onnx")(x.numpy()), compiled(x).numpy(), rtol=0, atol=1e-5)


def test_the_size_that_is_counted_at_is_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspection, notes and metadata say it; the file's axes have names; loading needs no example."""
    model = convolutions().eval()
    x = noise(2, 3, 64, 48)
    inspection = autorep_fx.inspect(model, x, config=FREE)
    static = autorep_fx.inspect(model, x)
    assert [site.comparisons for site in inspection.sites] == [site.comparisons for site in static.sites]
    assert "counted at 3×64×48" in str(inspection)
    assert inspection.to_json()["notes"] == list(inspection.notes) != []
    assert static.notes == ()
    compiled = autorep_fx.transform(model, "50%", example_inputs=x, config=FREE, out_dir=tmp_path)
    assert any("counted at 3×64×48" in note for note in compiled.plan.notes)
    file = tmp_path / "model.onnx"
    session = Session(file)
    assert session.inputs == {"input": ("batch", 3, "height", "width")}
    assert [size["example"] for size in session.sizes.values()] == [64, 48]
    stated = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert json.loads(stated["autorep_fx.sizes"])["width"]["example"] == 48
    assert autorep_fx.count_comparisons(file) == compiled.comparisons
    loaded = autorep_fx.load(tmp_path, convolutions())
    assert loaded.comparisons == compiled.comparisons
    torch.testing.assert_close(loaded(noise(1, 3, 9, 9)), compiled(noise(1, 3, 9, 9)), rtol=0, atol=1e-6)
    with pytest.raises(SystemExit):
        main(["verify", str(file)])
    assert "of the example's size, of 3×65×51, of 3×63×49" in capsys.readouterr().out


def test_training_on_images_of_several_sizes() -> None:
    """Batches of different sizes train one model."""
    data = [(noise(8, 1, 8 + 4 * (i % 2), 8, seed=i), torch.arange(8) % 4) for i in range(4)]
    config = {**FREE, "training": {"epochs": 2}, "finetune": {"epochs": 1}, "calibration": {"samples": 24}}
    model = create("digits_resnet", num_classes=4)
    compiled = autorep_fx.transform(model, "30%", data=data, val_data=data, config=config, device="cpu")
    assert compiled.comparisons <= 0.3 * compiled.original_comparisons
    assert compiled.plan.calibrated_on == "16 training samples"  # those of the first batch's size


def test_sizes_with_steps_are_found_and_held(tmp_path: Path) -> None:
    """A network that halves twice takes multiples of 4, in torch and in onnxruntime; others are refused."""
    compiled = autorep_fx.transform(UNet(), "50%", example_inputs=noise(2, 3, 16, 16), config=FREE)
    compiled.export(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"height from 4, as 16 plus or minus multiples of 4"):
        compiled(noise(1, 3, 18, 16))
    with pytest.raises(DataError, match="has height 18; the model takes 4 or more"):
        Session(tmp_path / "m.onnx")(np.zeros((1, 3, 18, 16), np.float32))


def test_a_branch_on_the_size_bounds_it() -> None:
    """Only the branch that the example took is captured: sizes of the other are refused."""
    model = Call(lambda y: y * 2 if y.shape[2] > 12 else y)
    compiled = autorep_fx.transform(model, "50%", example_inputs=noise(2, 3, 16, 16), config=FREE)
    assert compiled(noise(1, 3, 13, 4)).shape == (1, 4, 13, 4)
    with pytest.raises(DataError, match="height from 13"):
        compiled(noise(1, 3, 12, 16))


def test_sizes_that_must_be_equal_share_a_name(tmp_path: Path) -> None:
    """An image that is added to its transpose is square."""
    model = Call(lambda y: y + y.transpose(2, 3))
    compiled = autorep_fx.transform(model, "50%", example_inputs=noise(2, 3, 8, 8), config=FREE)
    compiled.export(tmp_path / "m.onnx")
    session = Session(tmp_path / "m.onnx")
    assert session(np.zeros((1, 3, 11, 11), np.float32)).shape == (1, 4, 11, 11)
    with pytest.raises(DataError, match="the same on all axes"):
        compiled(noise(1, 3, 8, 9))
    with pytest.raises(DataError, match="axes of one name have one size"):
        session(np.zeros((1, 3, 11, 9), np.float32))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda y: y.flatten(1) @ torch.ones(4 * 256, 3), r"takes no other height and width: at height 17, width 19"),
        (lambda y: y.view(-1, 4, 16, 16) * 2, r"fixes axis 2 of x to 16(?s:.*)fixes axis 3 of x to 16"),
    ],
)
def test_heads_that_fix_the_size(function: Any, message: str) -> None:
    """One error that says what fixes the size, and what to do."""
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        autorep_fx.transform(Call(function), "50%", example_inputs=noise(2, 3, 16, 16), config=FREE)
    assert "AdaptiveAvgPool2d" in str(caught.value)


def test_adaptive_pooling_to_several_values_is_an_obstacle(tmp_path: Path) -> None:
    """ONNX has no windows that depend on the size: found by inspect, refused by export."""
    model, x = Call(lambda y: F.adaptive_avg_pool2d(y, 3)), noise(2, 3, 16, 16)
    [problem] = autorep_fx.inspect(model, x, config=FREE).problems
    assert "adaptive_avg_pool2d" in problem
    assert autorep_fx.inspect(model, x).problems == ()
    with pytest.raises(UnsupportedModelError, match="windows that depend on the height and width"):
        autorep_fx.transform(model, "50%", example_inputs=x, config=FREE).export(tmp_path / "m.onnx")


def test_a_site_whose_channels_vary_is_declined() -> None:
    """Rows of an image are no channels."""
    model = Call(lambda y: F.relu(y.sum(1) - 1))
    *_, site = autorep_fx.inspect(model, noise(2, 3, 16, 16), config=FREE).sites
    assert site.reason == "its channels vary with the height or width of the input"


def test_models_without_images() -> None:
    """There is nothing to free."""
    with pytest.raises(UnsupportedModelError, match="no input has any"):
        autorep_fx.transform(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "50%", example_inputs=noise(2, 4), config=FREE)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({}, "gates.granularity"),
        ({"gates": {"granularity": "element"}}, "gates.granularity"),
        ({"gates": {"granularity": "site"}, "sites": {"relu": {"granularity": "element"}}}, "sites.relu.granularity"),
    ],
)
def test_element_gates_contradict_free_sizes(settings: dict[str, Any], place: str) -> None:
    """An error before any work: the model is not even called."""

    def never(y: Tensor) -> Tensor:
        raise AssertionError

    config = {"capture": {"dynamic_size": True}, **settings}
    with pytest.raises(ConfigError, match=r"capture\.dynamic_size and element gates") as caught:
        autorep_fx.transform(Call(never), "50%", example_inputs=noise(2, 3, 8, 8), config=config)
    assert place in str(caught.value)
    assert "granularity: channel" in str(caught.value)


def test_exported_programs_with_free_sizes(tmp_path: Path) -> None:
    """What the program leaves free stays free; it had another example than is counted at."""
    program = torch.export.export(
        UNet().eval(), (noise(2, 3, 64, 64),), dynamic_shapes=({0: Dim("n"), 2: 4 * Dim("rows", min=2)},)
    )
    x = noise(2, 3, 48, 64)
    compiled = autorep_fx.transform(program, "50%", example_inputs=x, config=FREE)
    static = autorep_fx.transform(program, "50%", example_inputs=x, config={"gates": {"granularity": "channel"}})
    assert compiled.original_comparisons == static.original_comparisons
    compiled.export(tmp_path / "m.onnx")
    assert Session(tmp_path / "m.onnx").inputs["x"] == ("batch", 3, "height", 64)
    assert compiled(noise(1, 3, 12, 64)).shape == (1, 8, 12, 64)
    with pytest.raises(UnsupportedModelError, match="no input has any"):
        fixed = torch.export.export(UNet().eval(), (noise(2, 3, 16, 16),), dynamic_shapes=({0: Dim("n")},))
        autorep_fx.transform(fixed, "50%", example_inputs=noise(2, 3, 16, 16), config=FREE)


def per_sample_loop(y: Tensor) -> Tensor:
    """Python that runs over the batch."""
    return torch.stack([torch.softmax(F.max_pool2d(y[i], 2).mean((1, 2)), 0) for i in range(int(y.shape[0]))])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_the_exit(batch: int, tmp_path: Path) -> None:
    """A model that only a fixed batch can capture: the error says so, and counts are those of one sample."""
    model, x = Call(per_sample_loop), noise(batch, 3, 8, 8)
    with pytest.raises(UnsupportedModelError, match="dynamic_batch: false"):
        autorep_fx.transform(model, "50%", example_inputs=x)
    compiled = autorep_fx.transform(model, "50%", example_inputs=x, config=FIXED)
    verification = compiled.export(tmp_path / "m.onnx")
    assert verification.batches == (batch,)
    assert verification.comparisons == compiled.comparisons
    session = Session(tmp_path / "m.onnx")
    assert session.inputs["x"] == (batch, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(session(x.numpy()), compiled(x).numpy(), rtol=0, atol=1e-6)
    assert any(f"the batch is fixed to {batch}" in note for note in compiled.notes)
    with pytest.raises(DataError, match=f"fixed batch of {batch}"):
        compiled(noise(7, 3, 8, 8))


def test_a_fixed_batch_counts_as_a_dynamic_one(tmp_path: Path) -> None:
    """Sites, counts and everything kept are the same."""
    model, x = trained_norms(create("digits_resnet"), noise(16, 1, 8, 8)), noise(5, 1, 8, 8)
    fixed, free = (autorep_fx.transform(model, "100%", example_inputs=x, config=config) for config in (FIXED, {}))
    assert [(s.name, s.shape, s.comparisons) for s in fixed.sites] == [
        (s.name, s.shape, s.comparisons) for s in free.sites
    ]
    fixed.save(tmp_path)
    loaded = autorep_fx.load(tmp_path, create("digits_resnet"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-5)


def test_training_with_a_fixed_batch() -> None:
    """Batches of the example's size train; a smaller last one is refused with the remedy."""
    data = [(noise(4, 3, 8, 8, seed=i), torch.arange(4)) for i in range(3)]
    config = {**FIXED, "training": {"epochs": 1}, "finetune": {"epochs": 1}}
    compiled = autorep_fx.transform(Call(per_sample_loop), "50%", data=data, val_data=data, config=config, device="cpu")
    assert compiled.plan.calibrated_on == "4 training samples"
    last = (noise(3, 3, 8, 8), torch.arange(3))
    with pytest.raises(DataError, match="drop_last=True"):
        autorep_fx.transform(Call(per_sample_loop), "50%", data=[*data, last], config=config, device="cpu")


class Table(nn.Module):
    """Scores of samples against the rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return F.relu(self.linear(x)) @ table.t()


@pytest.mark.parametrize("key", ["table", 1, "1"])
@pytest.mark.parametrize("named", [True, False])
def test_a_table_as_long_as_the_batch(key: Any, named: bool, tmp_path: Path) -> None:
    """Settings say that it has no batch; the guess would give it one."""
    if named and key != "table":
        pytest.skip("keyword inputs have no position")
    x, table = noise(4, 6), noise(4, 6, seed=1)
    inputs = {"x": x, "table": table} if named else (x, table)
    config = {"capture": {"batch_dims": {key: None}}}
    compiled = autorep_fx.transform(Table(), "50%", example_inputs=inputs, config=config)
    compiled.save(tmp_path)
    session = Session(tmp_path / "model.onnx")
    assert session.inputs == {"x": ("batch", 6), "table": (4, 6)}
    more = noise(9, 6, seed=2)
    with torch.no_grad():
        expected = compiled(more, table).numpy()
    np.testing.assert_allclose(session(more.numpy(), table.numpy()), expected, rtol=0, atol=1e-5)
    assert autorep_fx.load(tmp_path, Table()).comparisons == compiled.comparisons
    with pytest.raises(AutorepError):
        autorep_fx.transform(Table(), "50%", example_inputs=inputs).export(tmp_path / "wrong.onnx")


def test_training_with_a_table() -> None:
    """Samples of several batches are joined, the table is not."""
    table = noise(4, 6, seed=1)
    data = [((noise(4, 6, seed=i), table), torch.arange(4)) for i in range(3)]
    config = {"capture": {"batch_dims": {"table": None}}, "training": {"epochs": 1}, "finetune": {"epochs": 1}}
    compiled = autorep_fx.transform(Table(), "50%", data=data, config=config, device="cpu")
    assert compiled.plan.calibrated_on == "12 training samples"


@pytest.mark.parametrize(
    ("batch_dims", "message"),
    [
        ({"tabel": None}, "Did you mean 'table'"),
        ({"x": 1}, r"x\.transpose\(0, 1\)"),
        ({0: 0, 1: 0}, "do not share one"),
    ],
)
def test_wrong_batch_dims(batch_dims: dict[Any, Any], message: str) -> None:
    """Unknown inputs, other axes than the first, and batches of two sizes."""
    with pytest.raises(ConfigError, match=message):
        autorep_fx.inspect(Table(), (noise(4, 6), noise(5, 6)), config={"capture": {"batch_dims": batch_dims}})


def test_captured_modules_keep_what_is_free() -> None:
    """A module that was captured with other settings is refused."""
    model, x = convolutions().eval(), noise(2, 3, 8, 8)
    captured = autorep_fx.capture(model, x, config=FREE)
    gated = autorep_fx.prepare(captured, "50%", example_inputs=x, config=FREE)
    assert gated(noise(1, 3, 9, 12)).shape == (1, 2, 5, 6)
    with pytest.raises(ConfigError, match="captured with other settings of 'capture'"):
        autorep_fx.prepare(captured, "50%", example_inputs=x)


def test_settings_survive_a_file() -> None:
    """Positions become texts, and everything reads back."""
    config = TransformConfig.model_validate({"capture": {"batch_dims": {0: 0, "table": None}, "dynamic_batch": False}})
    assert TransformConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("batch", [1, 3])
def test_activations_of_single_samples_are_fixed(batch: int, tmp_path: Path) -> None:
    """With a fixed batch, Python that runs over it has sites without a batch axis: they are counted, and not gated."""
    model = Call(lambda y: torch.stack([F.relu(y[i] - 1).mean((1, 2)) for i in range(int(y.shape[0]))]))
    compiled = autorep_fx.transform(model, "50%", example_inputs=noise(batch, 3, 8, 8), config=FIXED)
    first, *others = compiled.sites
    assert first.gateable
    assert first.comparisons == 256
    assert [(s.gateable, s.comparisons) for s in others] == [(False, 256)] * batch
    assert compiled.export(tmp_path / "m.onnx").comparisons == compiled.comparisons == 128 + 256 * batch


def test_an_activation_of_the_mean_over_the_batch_is_fixed() -> None:
    """It has no batch axis; that samples influence one another is a problem of its own."""
    found = autorep_fx.inspect(Call(lambda y: y - F.relu(y.mean(0))), noise(4, 3, 8, 8))
    assert [site.comparisons for site in found.sites] == [256, 256]
    assert [site.gateable for site in found.sites] == [True, False]
    assert found.problems == ("outputs of one sample depend on the other samples of its batch",)
