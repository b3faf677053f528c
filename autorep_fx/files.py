"""Writing results: beside the target first, then renamed, so that no half-written file is left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autorep_fx.errors import OutputError

__all__ = ["atomic_path", "output_directory", "write_text"]


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it onto ``target`` when the block succeeds.

    The temporary name keeps the suffix of the target, because some writers choose their format by it.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    target = Path(target)
    if target.exists() and not target.is_file():
        raise OutputError(
            f"The output file {target} cannot be written.",
            received="a folder, a device or a pipe of that name",
            fix="Pass the path of a file.",
        )
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise OutputError(
            f"The output file {target} cannot be written.",
            received=str(error),
            fix="Pass a path in an existing folder that you may write to.",
        ) from error
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
            raise OutputError(
                f"The output file {target} cannot be written.",
                received=str(error),
                fix="Pass the path of a file, not of a folder, that you may write to.",
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


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
