"""Uses an installed autorep-fx as its user would; run by ``smoke.sh`` with the Python of an empty environment.

The argument is the folder that the wheel was built from: the wheel must hold its package and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path


def check_contents(source: Path) -> None:
    """Every file of the package, under ``autorep_fx`` only."""
    files = {str(file) for file in distribution("autorep-fx").files or ()}
    package = {file for file in files if file.startswith("autorep_fx/") and "__pycache__" not in file}
    others = {file.split("/")[0] for file in files - package if "__pycache__" not in file}
    others = {name for name in others if not name.endswith(".dist-info") and name != ".."}
    assert not others, f"The wheel also installs {sorted(others)}."
    folders = [source / "autorep_fx", *(p for p in (source / "autorep_fx").iterdir() if p.is_symlink())]
    wanted = {
        path.relative_to(source).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"autorep_fx/py.typed", "autorep_fx/passes/__init__.py", "autorep_fx/runtime/__init__.py"} <= wanted
    assert any(name.endswith(".j2") for name in wanted)
    assert package == wanted, f"Missing {sorted(wanted - package)}, not in the source {sorted(package - wanted)}."


def check_command() -> None:
    """The console script is there, knows its commands and its version."""
    command = Path(sys.executable).with_name("autorep-fx")

    def output(option: str) -> str:
        return subprocess.run([command, option], check=True, capture_output=True, text=True, timeout=120).stdout

    assert "transform" in output("--help")
    assert distribution("autorep-fx").version in output("--version")


def check_compile() -> None:
    """A small model goes in, and an ONNX file that keeps to the budget and computes the same comes out."""
    import numpy as np
    import torch
    from torch import nn

    import autorep_fx
    from autorep_fx.runtime import Session

    assert Path(autorep_fx.__file__).is_relative_to(sys.prefix), autorep_fx.__file__
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 16), nn.ReLU()
    ).append(nn.Linear(16, 3))
    inputs = torch.randn(8, 1, 8, 8)
    compiled = autorep_fx.transform(model, "25%", example_inputs=inputs)
    assert compiled.original_comparisons == 272, compiled.original_comparisons
    assert compiled.comparisons == 68, compiled.comparisons
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        compiled.export(path)
        assert autorep_fx.count_comparisons(path) == 68
        outputs = Session(path, device="cpu")(inputs.numpy())
    with torch.no_grad():
        expected = compiled.module(inputs).numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    check_contents(Path(sys.argv[1]))
    check_command()
    check_compile()
