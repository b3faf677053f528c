"""Writing results leaves either the whole file or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autorep_fx.errors import OutputError
from autorep_fx.files import atomic_path, output_directory, write_text


def test_the_file_appears_whole_and_alone(tmp_path: Path) -> None:
    """Inside the block the target is absent; afterwards it is there and nothing else is."""
    target = tmp_path / "model.onnx"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"abc")
        assert not target.exists()
    assert target.read_bytes() == b"abc"
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """Whatever stops the writer, Ctrl-C included, no file is left."""
    with pytest.raises(type(error)), atomic_path(tmp_path / "plan.json") as temporary:
        temporary.write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    """The last good file survives a failed rewrite, and is replaced by a good one."""
    target = write_text(tmp_path / "plan.json", "good")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == "good"
    write_text(target, "bettér")
    assert target.read_text(encoding="utf-8") == "bettér"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_the_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    """Results are as readable as what open() makes, not private like temporary files."""
    (tmp_path / "ordinary").write_text("")
    written = write_text(tmp_path / "written", "")
    assert written.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    """A path below a file cannot be written, and the error says which path and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/plan\.json") as caught:
        write_text(tmp_path / "file" / "plan.json", "text")
    assert caught.value.fix
    with pytest.raises(OutputError, match=r"file.out"):
        output_directory(tmp_path / "file" / "out")
    with pytest.raises(OutputError):
        output_directory(tmp_path / "file")


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    """Writing a file makes no folders."""
    with pytest.raises(OutputError):
        write_text(tmp_path / "missing" / "plan.json", "text")
    assert os.listdir(tmp_path) == []


def test_a_target_that_is_a_folder_is_an_output_error(tmp_path: Path) -> None:
    """A folder is not replaced by a file, and nothing is left beside it."""
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(OutputError):
        write_text(tmp_path / "plan.json", "text")
    assert os.listdir(tmp_path) == ["plan.json"]


def test_an_output_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    """The check that it can be written leaves nothing in it, and an existing folder will do."""
    folder = output_directory(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert output_directory(folder) == folder
    assert os.listdir(folder) == []
