"""Models, weights and data by name: every key of a pipeline file does something, and damage is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import autorep_fx
from autorep_fx.config import AugmentConfig, DataConfig, ModelConfig, PipelineConfig
from autorep_fx.config_io import load_pipeline, parse_config
from autorep_fx.errors import CheckpointError, ConfigError, DataError
from autorep_fx.loading import import_object, load_data, load_model, load_weights
from autorep_fx.models_zoo.data import Batches, FileBatches
from autorep_fx.passes.inputs import ExampleInputs
from nets import TinyNet, seeded

BASE: dict[str, Any] = {
    "model": {"factory": "nets:seeded_digits"},
    "data": {"name": "digits", "batch_size": 64},
    "budget": "5%",
    "training": {"epochs": 1},
    "finetune": {"epochs": 0},
    "calibration": {"samples": 32},
    "outputs": {"onnx": False, "report": False},
    "device": "cpu",
}

CHANGES: dict[str, dict[str, Any]] = {
    "model.args": {"model": {"factory": "nets:seeded_digits", "args": {"seed": 1}}},
    "model.zoo": {"model": {"zoo": "resnet20", "args": {"in_channels": 1}}},
    "model.spec": {"model": {"spec": "zoo:resnet20", "args": {"in_channels": 1}}},
    "data.batch_size": {"data": {"name": "digits", "batch_size": 128}},
    "data.augment": {"data": {"name": "digits", "batch_size": 64, "augment": False}},
    "data.augment steps": {"data": {"name": "digits", "batch_size": 64, "augment": ["crop"]}},
    "data.augment pixels": {
        "data": {"name": "digits", "batch_size": 64, "augment": [{"name": "cutout", "pixels": 3}, "flip"]}
    },
    "data.args": {"data": {"name": "digits", "batch_size": 64, "args": {"seed": 5}}},
    "budget": {"budget": "6%"},
    "seed": {"seed": 1},
}


def _digest(changes: dict[str, Any], folder: Path) -> str:
    config = parse_config({**BASE, **changes}, PipelineConfig)
    assert isinstance(config, PipelineConfig)
    return autorep_fx.run_pipeline(config, folder).plan.digest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the plan that the unchanged settings give."""
    return _digest({}, tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_of_a_pipeline_changes_the_plan(key: str, base: str, tmp_path: Path) -> None:
    """Model, data, budget and seed."""
    assert _digest(CHANGES[key], tmp_path) != base


def test_the_usual_augmentation_can_be_written_out(base: str, tmp_path: Path) -> None:
    """True is a crop by one pixel for digits, and the written steps survive a round trip through the file."""
    steps = {"data": {"name": "digits", "batch_size": 64, "augment": [{"name": "crop", "pixels": 1}]}}
    assert _digest(steps, tmp_path) == base
    again = load_pipeline(tmp_path / "pipeline.yaml")
    assert again.data is not None
    assert again.data.augment == (AugmentConfig(name="crop", pixels=1),)


@pytest.mark.parametrize(
    ("augment", "text"),
    [
        (["crop", "blur"], "'crop', 'flip', 'cutout' or 'resized_crop'"),
        ([{"name": "flip", "pixels": 2}], "flip takes no pixels; crop and cutout do"),
        ([{"name": "crop", "pixels": -1}], "greater than or equal to 0"),
        ([{"name": "crop", "pixel": 1}], "Did you mean 'pixels'"),
    ],
)
def test_augmentation_that_there_is_not_is_refused(augment: list[Any], text: str) -> None:
    """When the file is read."""
    with pytest.raises(ConfigError, match=text):
        parse_config({**BASE, "data": {"name": "digits", "augment": augment}}, PipelineConfig)


def _folder(root: Path) -> Path:
    image = pytest.importorskip("PIL.Image", reason="needs pillow: pip install autorep-fx[parquet]")
    for part, count in (("train", 4), ("val", 1)):
        for label in range(2):
            (root / part / f"class{label}").mkdir(parents=True)
            for number in range(count):
                color = (100 * label, 50 * number, 10)
                image.new("RGB", (40, 30), color).save(root / part / f"class{label}" / f"{number}.png")
    return root


def test_a_folder_of_images_is_read_into_memory_or_from_files(tmp_path: Path) -> None:
    """The same parts; from files a resized crop is taken while decoding, and the other steps follow."""
    args = {"folder": str(_folder(tmp_path)), "image_size": 16, "validation": 2}
    memory = load_data(DataConfig(name="image_folder", args=args, batch_size=3), 0)
    files = load_data(
        DataConfig(name="image_folder", args={**args, "resident": False, "workers": 0}, batch_size=3), 0
    )  # fmt: skip
    assert isinstance(memory.train, Batches)
    assert isinstance(files.train, FileBatches)
    assert files.train.random_crop
    for splits in (memory, files):
        x, y = next(iter(splits.train))
        assert (x.shape, x.dtype, y.shape) == ((3, 3, 16, 16), torch.float32, (3,))
        assert [len(list(part)) for part in (splits.train, splits.validation, splits.test)] == [2, 1, 1]
    plain = DataConfig(name="image_folder", args={**args, "resident": False}, augment=["flip"])  # type: ignore[arg-type]
    assert not load_data(plain, 0).train.random_crop  # type: ignore[attr-defined]


def test_what_a_folder_of_images_cannot_be_is_told(tmp_path: Path) -> None:
    """No folder, a folder of another layout, an argument that is not taken."""
    with pytest.raises(ConfigError, match="image_folder is read from a folder"):
        load_data(DataConfig(name="image_folder"), 0)
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_data(DataConfig(name="image_folder", args={"folder": str(tmp_path)}), 0)
    assert "expected train/CLASS" in str(caught.value)
    args = {"folder": str(_folder(tmp_path)), "workers": 2}
    with pytest.raises(ConfigError, match="does not take these arguments"):  # they are for resident: false
        load_data(DataConfig(name="image_folder", args=args), 0)


def test_data_are_put_on_the_device() -> None:
    """Of a named set; the model's example inputs come back to where its weights are."""
    splits = load_data(DataConfig(), 0, "meta")
    x, y = next(iter(splits.train))
    assert x.device.type == y.device.type == "meta"
    inputs = ExampleInputs.of((torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))
    assert [value.device.type for value in inputs.beside(torch.nn.Linear(2, 2, device="meta")).args] == ["meta"] * 2
    assert inputs.beside(torch.nn.ReLU()) is inputs


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The device of a pipeline reaches the trainer."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(autorep_fx.errors.DeviceError):
        _digest({"device": "cuda"}, tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_load_from_both_formats_and_damage_is_told(tmp_path: Path, suffix: str) -> None:
    """A whole file loads bit-equal; a truncated one, one of another model and a missing one are typed errors."""
    path, state = tmp_path / f"weights{suffix}", seeded().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = load_model(ModelConfig(factory="nets:TinyNet", checkpoint=path))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="of another model"):
        load_weights(torch.nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[:-40])
    for damaged in (path, tmp_path / f"none{suffix}"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_weights(TinyNet(), damaged)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    """Only tensors are loaded: a pickled module is no state dict, and none of its code runs."""
    torch.save(TinyNet(), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(TinyNet(), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_weights(TinyNet(), tmp_path / "list.pt")


def test_names_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    """No colon, no such module, a factory that makes no model, a data function that returns no splits."""
    for spec in ("nets", "nets:", "no_such_module:f", "nets:no_such"):
        with pytest.raises(ConfigError):
            import_object(spec)
    with pytest.raises(ConfigError, match="gives no model"):
        load_model(ModelConfig(factory="nets:splits"))
    config = parse_config({**BASE, "data": {"name": "nets:seeded"}}, PipelineConfig)
    assert isinstance(config, PipelineConfig)
    assert config.data is not None
    with pytest.raises(DataError, match=r"returns \(train, validation\)"):
        load_data(config.data, 0)


def test_a_model_is_named_once() -> None:
    """Of spec, zoo and factory exactly one."""
    for names in ({}, {"spec": "zoo:lenet", "zoo": "lenet"}, {"spec": "a:b", "factory": "a:b"}):
        with pytest.raises(ConfigError, match="exactly one of 'zoo' and 'factory'"):
            parse_config({**BASE, "model": names}, PipelineConfig)
