"""The command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import autorep_fx
from autorep_fx.cli import app, main
from autorep_fx.errors import BudgetInfeasibleError, ConfigError
from autorep_fx.models_zoo import create
from nets import TinyNet, batches, trained_norms

runner = CliRunner()

PIPELINE = {
    "model": {"factory": "nets:TinyNet"},
    "data": {"name": "nets:splits"},
    "budget": "10%",
    "training": {"epochs": 1},
    "finetune": {"epochs": 1},
    "calibration": {"samples": 16},
    "device": "cpu",
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A small pipeline file."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(PIPELINE))
    return path


def test_transform_runs_a_file(pipeline: Path, tmp_path: Path) -> None:
    """It prints the counts and writes the folder, with all defaults filled in."""
    result = runner.invoke(app, ["transform", "--config", str(pipeline), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "524 → 52 comparisons" in result.output
    written = yaml.safe_load((tmp_path / "out" / "pipeline.yaml").read_text())
    assert written["gates"]["granularity"] == "element"
    assert (tmp_path / "out" / "model.onnx").exists()


def test_a_method_is_chosen_by_name(pipeline: Path, tmp_path: Path) -> None:
    """With its own defaults where the file says nothing; an unknown one is refused with the known ones."""
    command = ["transform", "--config", str(pipeline), "--out", str(tmp_path / "out"), "--method", "snl"]
    assert runner.invoke(app, command).exit_code == 0
    written = yaml.safe_load((tmp_path / "out" / "pipeline.yaml").read_text())
    assert written["training"]["method"] == "snl"
    assert written["training"]["epochs"] == 1
    assert written["polynomials"]["form"] == "identity"
    result = runner.invoke(app, [*command[:-1], "fastest"])
    assert isinstance(result.exception, ConfigError)
    assert "'default', 'autorep', 'snl'" in str(result.exception)


def test_dry_run_checks_everything_and_writes_nothing(pipeline: Path, tmp_path: Path) -> None:
    """Sites, the resolved budget and the number of steps."""
    before = sorted(tmp_path.iterdir())
    result = runner.invoke(app, ["transform", "--config", str(pipeline), "--dry-run", "--budget", "100"])
    assert result.exit_code == 0, result.output
    assert "relu#2" in result.output
    assert "at most 100 comparisons (100 gateable + 0 fixed); 8 training steps" in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_refuses_what_a_run_would(tmp_path: Path) -> None:
    """Sites that are to keep more than the budget; a model that does not take the data that the file leaves out."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**PIPELINE, "budget": "1%", "sites": {"kind:relu": {"mode": "keep"}}}))
    result = runner.invoke(app, ["transform", "--config", str(path), "--dry-run"])
    assert isinstance(result.exception, BudgetInfeasibleError)
    assert "Single sites are to keep 512 comparisons, the budget allows 5" in str(result.exception)
    path.write_text(yaml.safe_dump({"model": {"zoo": "resnet18"}, "budget": "10%"}))
    result = runner.invoke(app, ["transform", "--config", str(path), "--dry-run"])
    assert isinstance(result.exception, ConfigError) and "names no data" in str(result.exception)
    result = runner.invoke(app, ["transform", "--config", str(path), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ConfigError) and "names no data" in str(result.exception)


def test_a_run_without_a_folder_is_refused(pipeline: Path) -> None:
    """--out is needed unless it is a dry run."""
    result = runner.invoke(app, ["transform", "--config", str(pipeline)])
    assert result.exit_code == 2
    assert "--out" in result.output


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"budgt": "5%"}, "Did you mean 'budget'"),
        ({"training": {"epochs": -1}}, "greater than or equal to 0"),
        ({"model": {"zoo": "resnet81"}}, "resnet18"),
        ({"model": {"factory": "nets:Missing"}}, "cannot be imported"),
        ({"model": {"factory": "nets:TinyNet", "checkpoint": "none.safetensors"}}, "cannot be read"),
        ({"data": {"name": "digitz"}}, "There is no data set"),
        ({"data": {"name": "cifar"}}, "--data DIR"),
        ({"sites": {"relu9": {"degree": 1}}}, "matches no site"),
        ({"budget": "1000"}, "above the 524"),
    ],
)
def test_a_wrong_file_is_one_message_and_exit_code_1(
    tmp_path: Path, change: dict[str, object], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback: what was wrong and what to do, on standard error."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**PIPELINE, **change}))
    with pytest.raises(SystemExit) as caught:
        main(["transform", "--config", str(path), "--dry-run"])
    assert caught.value.code == 1
    message = capsys.readouterr().err
    assert text in " ".join(message.split())
    assert "Traceback" not in message


def test_config_init_validate_schema(tmp_path: Path) -> None:
    """`config init` writes a file that validate accepts, and does not write over one; schema is JSON."""
    path = tmp_path / "new.yaml"
    assert runner.invoke(app, ["config", "init", str(path), "--budget", "12.9K"]).exit_code == 0
    written = yaml.safe_load(path.read_text())
    assert (written["budget"], written["model"]["spec"]) == ({"comparisons": 12900}, "zoo:digits_resnet")
    other = tmp_path / "other.yaml"
    assert runner.invoke(app, ["config", "init", str(other), "--model", "timm:resnet18"]).exit_code == 0
    assert runner.invoke(app, ["config", "validate", str(other)]).exit_code == 0
    assert runner.invoke(app, ["config", "validate", str(path)]).exit_code == 0
    assert runner.invoke(app, ["config", "init", str(path)]).exit_code == 2
    schema = json.loads(runner.invoke(app, ["config", "schema"]).stdout)
    assert {"model", "data", "budget", "stages", "training", "seed"} <= set(schema["properties"])


def test_inspect_prints_sites_as_text_and_as_json() -> None:
    """The zoo's resnet18 has 491,520 comparisons at 32×32."""
    result = runner.invoke(app, ["inspect", "zoo:resnet18", "--input", "3x32x32", "--json"])
    found = json.loads(result.stdout)
    assert (found["total"], found["gateable"], found["fixed"], len(found["sites"])) == (491520, 491520, 0, 16)
    assert found["sites"][0]["source"]
    result = runner.invoke(app, ["inspect", "nets:TinyNet", "--input", "1x8x8"])
    assert "524 comparisons: 524 gateable, 0 fixed; comparison depth 3" in result.output
    assert runner.invoke(app, ["inspect", "nets:TinyNet", "--input", "1xax8"]).exit_code == 2


def test_inspect_takes_the_size_of_the_library_and_draws(tmp_path: Path) -> None:
    """Without --input the zoo's own; weights from a file; the picture beside the JSON; the same twice."""
    weights, picture = tmp_path / "weights.pt", tmp_path / "graph.svg"
    torch.save(create("lenet").state_dict(), weights)
    command = ["inspect", "zoo:lenet", "--json", "--checkpoint", str(weights), "--graph", str(picture)]
    first, second = (json.loads(runner.invoke(app, command).stdout) for _ in range(2))
    assert first == second
    assert first["sites"][0]["level"] == 1
    assert first["sites"][0]["range"][0] < first["sites"][0]["range"][1]
    assert "zoo:lenet: " in picture.read_text()


OWN = """
import torch
class Pair(torch.nn.Module):
    def forward(self, x, index):
        return torch.relu(x) + index.sum(1, keepdim=True)
class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = (torch.nn.GRU(3, 3, batch_first=True) for _ in range(2))
    def forward(self, x):
        return self.two(self.one(x)[0])[0]
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module beside the working directory."""
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_nets", None)


def test_inspect_takes_settings(tmp_path: Path) -> None:
    """Ignored sites are not gateable; what is wrong in the file is said."""
    settings = tmp_path / "s.yaml"
    settings.write_text("sites: {relu6: {mode: ignore}}\n")
    command = ["inspect", "nets:TinyNet", "--input", "1x8x8", "--json", "--config", str(settings)]
    sites = json.loads(runner.invoke(app, command).output)["sites"]
    assert [site["name"] for site in sites if site["gateable"]] == ["relu", "relu#2"]
    settings.write_text("gates: {granularty: channel}\n")
    assert "granularity" in str(runner.invoke(app, command).exception)


@pytest.mark.usefixtures("own_module")
def test_inspect_of_several_inputs() -> None:
    """One --input per positional argument; a function of one's own has no usual shape."""
    result = runner.invoke(app, ["inspect", "own_nets:Pair", "-i", "3", "-i", "int64:2"])
    assert "3 comparisons: 3 gateable" in result.output
    assert runner.invoke(app, ["inspect", "nets:TinyNet"]).exit_code == 2


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("command", "texts"),
    [
        (["zoo:resnet81"], ["resnet18"]),
        (["nets:TinyNet", "-i", "1x8x8", "--graph", "graph.png"], ["drawn as SVG only"]),
        (["own_nets:Recurrent", "-i", "4x3"], ["2 obstacles", "1.", "2.", "compares inside itself"]),
    ],
)
def test_what_inspect_cannot_do(command: list[str], texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One message with every obstacle, and exit code 1."""
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *command])
    assert caught.value.code == 1
    message = capsys.readouterr().err
    assert all(text in message for text in texts), message


def test_verify_and_count(tmp_path: Path) -> None:
    """`verify` repeats the parity check; count takes any ONNX file."""
    model = trained_norms(TinyNet(), batches()[0][0])
    autorep_fx.transform(model, "10%", example_inputs=torch.randn(4, 1, 8, 8)).export(tmp_path / "m.onnx")
    result = runner.invoke(app, ["verify", str(tmp_path / "m.onnx")])
    assert "52 comparisons; equals torch" in " ".join(result.output.split())
    assert "52  total" in runner.invoke(app, ["count", str(tmp_path / "m.onnx")]).output


def test_version_and_help() -> None:
    """--version prints it, and every command has a help text."""
    assert autorep_fx.__version__ in runner.invoke(app, ["--version"]).output
    for command in (["demo"], ["transform"], ["inspect"], ["verify"], ["count"], ["config", "init"]):
        assert runner.invoke(app, [*command, "--help"]).exit_code == 0


def test_a_file_can_name_its_own_loss_and_a_dry_run_tries_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss decides the plan; one that cannot be imported fails the dry run."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**PIPELINE, "objective": {"loss": "nets:squared_error"}}))
    one = autorep_fx.run_pipeline(path, tmp_path / "one")
    path.write_text(yaml.safe_dump(PIPELINE))
    assert autorep_fx.run_pipeline(path, tmp_path / "two").plan.digest != one.plan.digest
    path.write_text(yaml.safe_dump({**PIPELINE, "objective": {"loss": "nets:no_such_loss"}}))
    with pytest.raises(SystemExit):
        main(["transform", "--config", str(path), "--dry-run"])
    assert "no_such_loss" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: exit code 130, a message, and the settings already beside the checkpoint."""
    path, out = tmp_path / "pipeline.yaml", tmp_path / "out"
    model = {"factory": "nets:seeded"}  # a run is only resumed with the weights that it started from
    path.write_text(yaml.safe_dump({**PIPELINE, "model": model, "training": {"epochs": 3}}))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autorep_fx.compilation.finetune", interrupt)
    result = runner.invoke(app, ["transform", "--config", str(path), "--out", str(out)])
    assert result.exit_code == 130
    assert "--resume" in result.output
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint",
        "pipeline.yaml",
        "run.json",
        "training.csv",
        "training.jsonl",
    ]
    monkeypatch.undo()
    result = runner.invoke(app, ["transform", "--config", str(path), "--out", str(out), "--resume"])
    assert result.exit_code == 0, result.output
    assert (out / "plan.json").exists()


def test_a_checkpoint_is_found_beside_the_file(tmp_path: Path) -> None:
    """A relative checkpoint is resolved against the pipeline file's folder."""
    torch.save(TinyNet().state_dict(), tmp_path / "weights.pt")
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**PIPELINE, "model": {"factory": "nets:TinyNet", "checkpoint": "weights.pt"}}))
    assert runner.invoke(app, ["transform", "--config", str(path), "--dry-run"]).exit_code == 0
