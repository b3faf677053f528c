"""Saved models: they load with the class and without it, and what does not fit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import AutorepError, CheckpointError, ModelFileError, PlanError
from nets import TinyNet, batches, trained_norms

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format_1"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, autorep_fx.Compiled]:
    """A trained TinyNet at 10 %, saved."""
    torch.manual_seed(0)
    model = trained_norms(TinyNet(), batches()[0][0])
    folder = tmp_path_factory.mktemp("saved")
    compiled = autorep_fx.transform(
        model, "10%", data=batches(), out_dir=folder,
        config={"training": {"epochs": 1}, "finetune": {"epochs": 1}, "sites": {"relu#2": {"granularity": "channel"}}},
    )  # fmt: skip
    return folder, compiled


def test_the_folder_is_complete(saved: tuple[Path, autorep_fx.Compiled]) -> None:
    """Plan, arrays, weights, settings, ONNX file and report; nothing temporary; readable by all."""
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.onnx", "plan.json", "plan.safetensors", "report.html", "run.json", "settings.yaml", "training.csv",
        "training.jsonl", "weights.safetensors",
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o400 for path in folder.iterdir())


def test_load_with_a_fresh_model_gives_the_same_module(saved: tuple[Path, autorep_fx.Compiled]) -> None:
    """A model with other weights is re-captured, gets the saved weights and plan, and gives bit-equal outputs."""
    folder, compiled = saved
    torch.manual_seed(77)
    loaded = autorep_fx.load(folder, TinyNet())
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded.module(x), compiled.module(x))
    assert loaded.comparisons == compiled.comparisons
    for mine, theirs in zip(loaded.plan.sites, compiled.plan.sites, strict=True):
        assert np.array_equal(mine.kept, theirs.kept)
        assert np.array_equal(mine.coefficients, theirs.coefficients)


def test_load_without_the_class_runs_the_onnx_file(saved: tuple[Path, autorep_fx.Compiled]) -> None:
    """The plan is there, and NumPy in and out gives torch's outputs."""
    folder, compiled = saved
    loaded = autorep_fx.load(folder)
    x = torch.randn(5, 1, 8, 8)
    np.testing.assert_allclose(loaded(x.numpy()), compiled.module(x).detach().numpy(), rtol=0, atol=1e-5)
    assert loaded.comparisons == compiled.comparisons
    assert loaded.plan.digest == compiled.plan.digest


def test_the_fixture_of_format_1_stays_loadable() -> None:
    """A folder that an earlier release wrote loads both ways; its count and its recorded outputs are unchanged."""
    expected = np.load(FIXTURE / "expected.npz")
    loaded = autorep_fx.load(FIXTURE, TinyNet())
    assert loaded.comparisons == 26
    np.testing.assert_allclose(
        loaded.module(torch.from_numpy(expected["x"])).detach().numpy(), expected["y"], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(autorep_fx.load(FIXTURE)(expected["x"]), expected["y"], rtol=0, atol=1e-5)


class _Renamed(TinyNet):
    """The same network with its clip under another name, and one activation more."""

    def __init__(self, extra: bool) -> None:
        super().__init__()
        self.clip, self.extra = self.relu6, extra
        del self.relu6

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        x = self.fc2(self.clip(self.fc1(x)))
        return x.relu() if self.extra else x


def test_another_model_is_refused_with_the_sites_that_differ(saved: tuple[Path, autorep_fx.Compiled]) -> None:
    """Missing, extra and renamed sites are listed; another width is told too."""
    folder, _ = saved
    with pytest.raises(PlanError, match=r"missing: relu6\n.*extra: clip, relu#3\n.*renamed, it seems: relu6 → clip"):
        autorep_fx.load(folder, _Renamed(extra=True), example_inputs=torch.zeros(2, 1, 8, 8))
    with pytest.raises(PlanError, match="operations, their arguments or shapes differ"):
        autorep_fx.load(folder, TinyNet(classes=7))


def test_a_renamed_site_is_refused_as_renamed(saved: tuple[Path, autorep_fx.Compiled]) -> None:
    """The graph is the same, and the site that the plan calls relu6 is now called clip: the message says so."""
    folder, _ = saved
    with pytest.raises(PlanError, match="renamed, it seems: relu6 → clip"):
        autorep_fx.load(folder, _Renamed(extra=False))


def _copy(saved: tuple[Path, autorep_fx.Compiled], tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    return folder


def _newer(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "format_version": 2}))


def _truncate(name: str) -> object:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def _foreign_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(3)}, folder / "weights.safetensors")


DAMAGE: dict[str, tuple[object, type[AutorepError], str]] = {
    "newer format": (_newer, PlanError, "newer format"),
    "truncated plan": (_truncate("plan.json"), PlanError, "not a valid plan"),
    "truncated arrays": (_truncate("plan.safetensors"), PlanError, "not those of this plan"),
    "truncated weights": (_truncate("weights.safetensors"), PlanError, "weights.safetensors: damaged"),
    "foreign weights": (_foreign_weights, PlanError, "of another result"),
    "no weights": (lambda folder: (folder / "weights.safetensors").unlink(), CheckpointError, "cannot be read"),
    "foreign plan": (lambda folder: (folder / "plan.json").write_text("[1]"), PlanError, "not a plan of autorep-fx"),
    "no plan": (lambda folder: (folder / "plan.json").unlink(), PlanError, "not a valid plan"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_a_typed_error(saved: tuple[Path, autorep_fx.Compiled], tmp_path: Path, name: str) -> None:
    """Truncated, foreign and newer files are told apart."""
    damage, error, text = DAMAGE[name]
    folder = _copy(saved, tmp_path)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(error, match=text):
        autorep_fx.load(folder, TinyNet(), example_inputs=torch.zeros(2, 1, 8, 8))


def test_without_the_onnx_file_the_model_is_asked_for(saved: tuple[Path, autorep_fx.Compiled], tmp_path: Path) -> None:
    """load(folder) alone needs the ONNX file."""
    folder = _copy(saved, tmp_path)
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelFileError, match="model"):
        autorep_fx.load(folder)
