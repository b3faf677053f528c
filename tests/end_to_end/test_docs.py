"""What the README and the docs print runs as printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml

import autorep_fx
from autorep_fx.config_io import load_pipeline
from autorep_fx.dry_run import dry_run

ROOT = Path(__file__).parents[2]


def _block(path: Path, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_readmes_code_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, in an empty folder; its last line asserts the count."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(_block(ROOT / "README.md", "python"), "README.md", "exec"), names)
    assert names["logits"].shape == (len(names["data"].test), 10)  # type: ignore[attr-defined]


def test_the_settings_of_single_sites_run() -> None:
    """The block of docs/models.md: a kept site, channel gates and a share of its own per block."""
    names: dict[str, object] = {}
    exec(compile(_block(ROOT / "docs" / "models.md", "python"), "models.md", "exec"), names)
    compiled = names["compiled"]
    sites = {site.name: site for site in compiled.plan.sites}  # type: ignore[attr-defined]
    assert sites["relu1"].kept_elements == sites["relu1"].elements
    assert {site.granularity for site in sites.values()} == {"channel"}


def test_the_readme_is_short() -> None:
    """At most about a hundred lines."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 105


def test_the_documented_pipeline_files_are_valid(tmp_path: Path) -> None:
    """The block in the docs, the stage list of the pass guide, and the files under examples/pipelines.

    Those that read a folder have tests of their own, with a small copy of it.
    """
    (tmp_path / "doc.yaml").write_text(_block(ROOT / "docs" / "pipeline_files.md", "yaml"))
    assert load_pipeline(tmp_path / "doc.yaml").finetune.lr == 5e-4
    recipe, base = (
        yaml.safe_load(block)
        for block in re.findall(
            r"```yaml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.DOTALL
        )
    )
    assert autorep_fx.config_io.parse_config(recipe).training.method == "autorep"
    assert autorep_fx.config.PipelineConfig.model_validate({**base, "budget": "5%"}).base is not None
    stages = yaml.safe_load(_block(ROOT / "docs" / "writing_passes.md", "yaml"))
    autorep_fx.config_io.parse_config(stages)
    for path in (ROOT / "examples" / "pipelines").glob("*.yaml"):
        config = load_pipeline(path)
        assert config.data is not None
        if config.data.name == "digits":
            assert dry_run(config).steps > 0


def test_the_example_pass_keeps_its_contract() -> None:
    """The pass in the guide removes dropout, is honest about it, and refuses train mode."""
    names: dict[str, object] = {"torch": torch}
    exec(compile(_block(ROOT / "docs" / "writing_passes.md", "python"), "writing_passes.md", "exec"), names)
    pass_ = names["RemoveDropoutPass"]()  # type: ignore[operator]
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(), torch.nn.ReLU())
    captured = autorep_fx.capture(model, torch.randn(2, 2))
    with pytest.raises(autorep_fx.errors.PreconditionError, match="train mode"):
        pass_(captured.train())
    captured.eval()
    assert pass_(captured).modified
    assert not pass_(captured).modified


def test_the_example_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a single epoch of gate training and of the base model's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "autorep_fx.demo.train_digits.__kwdefaults__", {"epochs": 1, "seed": 0, "on_step": lambda a, b: None}
    )
    runpy.run_path(str(ROOT / "examples" / "own_loop.py"))["main"](epochs=1)
    assert "4,480 → 224 comparisons" in capsys.readouterr().out
    assert autorep_fx.count_comparisons(tmp_path / "own_loop.onnx") == 224
