"""The commands, what importing loads, and what is said where the engine is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from typer.testing import CliRunner

from autorep_fx.cli import app
from autorep_fx.errors import EngineMissingError
from autorep_fx.runtime.secure.engine import require_jax, require_spu
from autorep_fx.runtime.secure.protocols import threat_table
from onnx_models import save

ROOT = Path(__file__).parents[2]


def test_split_writes_two_files_and_lists_what_leaks(model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["secure", "split", str(model), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"program.json", "weights.safetensors"}
    assert "What the public program tells everyone" in result.output and "kept" in result.output
    assert "Warning" not in result.output


@pytest.mark.engine
def test_split_says_what_the_engine_cannot_run(tmp_path: Path) -> None:
    nodes = [helper.make_node("Erf", ["x"], ["y"], name="gelu/Erf")]
    shape = ("float32", ["batch", 4])
    path = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape})
    result = CliRunner().invoke(app, ["secure", "split", str(path), "--out", str(tmp_path / "parts")])
    assert result.exit_code == 0, result.output
    assert "Warning: The engine has no form" in result.output and "gelu/Erf" in result.output


def test_certs_prints_fingerprints(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="certificates need cryptography")
    result = CliRunner().invoke(app, ["secure", "certs", "--out", str(tmp_path), "--names", "client,server,helper"])
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"sha256: [0-9a-f]{64}", result.output.replace("\n", ""))) == 3
    assert len(list(tmp_path.glob("*.key"))) == 3


@pytest.mark.engine
def test_run_writes_its_result(model: Path, x: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    arguments = ["secure", "run", str(model), "--input", str(tmp_path / "x.npy"), "--protocol", "semi2k", "--mode"]
    arguments += ["simulate", "--json", str(tmp_path / "r.json"), "--output", str(tmp_path / "y.npy")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    value = json.loads((tmp_path / "r.json").read_text())
    assert {"comparisons", "predicted_bytes", "measured_bytes", "messages", "seconds", "max_error"} <= value.keys()
    assert value["leaks"] and value["threat_model"]["corruption"]
    assert np.load(tmp_path / "y.npy").shape == (2, 3)
    assert "online, given a dealer" in result.output and "leaks:" in result.output


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_importing_loads_neither_the_engine_nor_torch() -> None:
    modules = [
        "public", "split", "secrets_of", "engine", "program", "protocols", "profile", "results", "run", "execute",
        "parties", "certificates", "link", "party", "simulate", "slices", "executables", "frames", "plain",
        "pieces", "profiled", "node_profile", "calls",
    ]  # fmt: skip
    code = f"import sys, importlib\nfor m in {modules}: importlib.import_module('autorep_fx.runtime.secure.' + m)\n"
    assert _python(code + "print(sorted({'torch', 'jax', 'spu', 'onnxruntime'} & set(sys.modules)))") == "[]"


@pytest.mark.engine
def test_a_session_needs_no_torch(model: Path) -> None:
    code = f"""
import sys
sys.modules['torch'] = None
import numpy as np
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.run import run_model
run = run_model({str(model)!r}, [np.zeros((1, 1, 6, 6), np.float32)], Settings('semi2k'), timeout=60)
print(run.max_error < 1e-3)
"""
    assert _python(code) == "True"


@pytest.mark.parametrize("name", ["spu", "jax"])
def test_a_missing_engine_is_named_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineMissingError, match=r"(?s)Python 3\.\d+.*autorep-fx\[secure\]") as caught:
        (require_spu if name == "spu" else require_jax)()
    assert caught.value.fix is not None


def test_the_docs_have_the_threat_table() -> None:
    text = (ROOT / "docs" / "secure.md").read_text(encoding="utf-8")
    for row in threat_table():
        assert "| " + " | ".join(row) + " |" in text
