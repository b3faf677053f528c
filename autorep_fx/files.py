"""Writing results: beside the target first, then renamed, so that no half-written file is left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autorep_fx.errors import OutputError

__all__ = ["atomic_files", "atomic_path", "output_directory", "write_text"]


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it onto ``target`` when the block succeeds.

    The temporary name keeps the suffix of the target, because some writers choose their format by it.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    target = Path(target)
    _check_file(target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error, "Pass a path in an existing folder that you may write to.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; results get the mode that an ordinary open() would give them.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        try:
            temporary.replace(target)
        except OSError as error:
            raise _unwritable(target, error, "Pass the path of a file that you may write to.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(target: Path | str) -> Iterator[Path]:
    """Like :func:`atomic_path` for a file that may have others beside it, to which it refers by name.

    Yields a path of the name of ``target`` in a temporary folder. When the block succeeds, all that the folder holds
    is moved beside ``target``, ``target`` itself last: where it is, the others are.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    target = Path(target)
    _check_file(target)
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error, "Pass a path in an existing folder that you may write to.") from error
    with folder as name:
        temporary = Path(name) / target.name
        yield temporary
        others = sorted(path for path in Path(name).iterdir() if path != temporary)
        for path in others:
            _check_file(target.with_name(path.name))
        try:
            if others:
                target.unlink(missing_ok=True)  # an earlier one would refer to what is replaced now
            for path in (*others, temporary):
                path.replace(target.with_name(path.name))
        except OSError as error:
            for path in others:
                if not path.exists():
                    target.with_name(path.name).unlink(missing_ok=True)
            raise _unwritable(target, error, "Pass the path of a file that you may write to.") from error


def _check_file(target: Path) -> None:
    if target.exists() and not target.is_file():
        raise _unwritable(target, "a folder, a device or a pipe of that name", "Pass the path of a file.")


def _unwritable(target: Path, cause: object, fix: str) -> OutputError:
    return OutputError(f"The output file {target} cannot be written.", received=str(cause), fix=fix)


def write_text(target: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically and return the path."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(target)


def output_directory(folder: Path | str) -> Path:
    """Create ``folder`` if needed and check that it can be written, before any work is done.

    Raises:
        OutputError: It is a file, or cannot be created or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise OutputError(
            f"The output folder {path} cannot be written.",
            received=str(error),
            fix="Pass a folder that you may create and write to.",
        ) from error
    return path
