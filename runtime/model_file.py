"""A model file is untrusted input: what is checked of it before onnxruntime reads it.

A file names other files, those that its weights are in; none of them may lie outside of its folder. Needs no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from autorep_fx.errors import ModelFileError

__all__ = ["MAX_BYTES", "CheckedModel", "check_model_file"]

#: Bytes that a model may have, its external data included, where nothing else is said.
MAX_BYTES = 8 * 2**30
_AGAIN = "Export the model again, or get the file anew from where it came from."

Digests = str | Mapping[str, str] | None


@dataclass(frozen=True)
class CheckedModel:
    """A model file that passed its checks.

    Attributes:
        path: The file.
        external: Files that its weights are in, relative to its folder.
        state: What the files were when they were checked.
    """

    path: Path
    external: tuple[str, ...]
    state: tuple[tuple[int, ...], ...]

    def require_unchanged(self) -> None:
        """Refuse files that were exchanged between the check and now.

        Raises:
            ModelFileError: They were.
        """
        if _state(self.path, self.external) != self.state:
            raise ModelFileError(
                f"{self.path}, or a file with its weights, changed while it was loaded.",
                fix="Load from a folder that nobody writes to meanwhile.",
            )


def check_model_file(path: Path | str, *, max_bytes: int | None = MAX_BYTES, sha256: Digests = None) -> CheckedModel:
    """Check a model file: size, digests, where its weights are, and the ONNX checker, in this order.

    Args:
        path: The file.
        max_bytes: Bytes that it may have together with its external data; None for no limit.
        sha256: Expected digests: of a file without external data as text, or by file name, as ``files`` in a
            ``plan.json`` has them. Then every file of the model must be named, and other names are ignored.

    Raises:
        ModelFileError: The first of these that does not hold, with what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", fix="Pass the path of an exported .onnx file.")
    _check_size(path, (path,), max_bytes)
    _check_digest(path, path.name, sha256)
    external = _external_locations(path)
    data = [_external_file(path, location) for location in external]
    _check_size(path, (path, *data), max_bytes)
    if external and isinstance(sha256, str):
        raise ModelFileError(
            f"One digest was given for {path}, whose weights are in other files, which it does not cover.",
            received=f"weights in {', '.join(external)}",
            fix="Pass sha256={file name: digest} with all of them; plan.json beside a saved model has them as 'files'.",
        )
    for location, file in zip(external, data, strict=True):
        _check_digest(file, location, sha256)
    state = _state(path, external)
    _check_onnx(path)
    return CheckedModel(path, external, state)


def _state(path: Path, external: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    found = [os.stat(file) for file in (path, *(path.parent / name for name in external))]
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def _check_size(path: Path, files: tuple[Path, ...], max_bytes: int | None) -> None:
    size = sum(file.stat().st_size for file in files)
    if max_bytes is not None and size > max_bytes:
        raise ModelFileError(
            f"{path} is larger than what may be loaded.",
            received=f"{size:,} bytes" + (" with its external data" if len(files) > 1 else ""),
            fix=f"Pass max_bytes={size} or more if the file is to be trusted; the limit is {max_bytes:,}.",
        )


def _check_digest(file: Path, name: str, expected: Digests) -> None:
    if expected is None:
        return
    wanted = expected if isinstance(expected, str) else expected.get(name)
    if wanted is None:
        raise ModelFileError(
            f"No digest was given for {name}, a file of the model.", received=f"digests of {', '.join(expected)}",
            fix="Name every file of the model, or pass no digests.",
        )  # fmt: skip
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wanted.strip().lower():
        raise ModelFileError(
            f"{file} is not the file that was expected.",
            received=f"SHA-256 {found}; expected {wanted.strip().lower()}",
            fix=_AGAIN,
        )


def _external_locations(path: Path) -> tuple[str, ...]:
    """The names of the files that tensors of the model are in, in order of appearance."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # the type is that of the installed protobuf
        raise ModelFileError(f"{path} is not a valid ONNX model.", received=_line(error), fix=_AGAIN) from error
    found = {
        entry.value: None
        for tensor in _tensors(model, onnx.TensorProto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(found)


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    """All tensors in a message: initializers, attributes, those of subgraphs and functions."""
    for _, value in message.ListFields():
        items = (value,) if hasattr(value, "ListFields") else value
        if isinstance(items, (str, bytes, int, float)):
            continue
        for item in items:
            if isinstance(item, kind):
                yield item
            elif hasattr(item, "ListFields"):
                yield from _tensors(item, kind)
            else:
                break  # a list of numbers


def _external_file(path: Path, location: str) -> Path:
    """The file that ``location`` names, if it is a plain file below the model's folder, with no link on the way."""
    forms = (PurePosixPath(location), PureWindowsPath(location))
    problem = None
    if not location or "\0" in location:
        problem = "is no file name"
    elif any(form.is_absolute() or form.drive or form.root for form in forms):
        problem = "is absolute"
    elif any(".." in form.parts for form in forms):
        problem = "leaves the folder of the model"
    if problem is None:
        file = path.parent / location
        steps = [path.parent.joinpath(*forms[0].parts[:n]) for n in range(1, len(forms[0].parts) + 1)]
        if any(step.is_symlink() for step in steps):
            problem = "is, or lies behind, a symbolic link"
        elif not file.is_file():
            problem = "does not exist, or is no ordinary file"
    if problem is not None:
        raise ModelFileError(
            f"{path} has weights in a file that cannot be used.",
            received=f"external data in {location!r}, which {problem}",
            fix="Keep a model and its weights in one folder, as the export writes them. A file that names others "
            "elsewhere is not to be trusted.",
        )
    return file


def _check_onnx(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path))  # by its path: with weights beside it, it may be above 2 GiB
    except Exception as error:  # the checker raises types of its own, and some of the C++ library
        raise ModelFileError(f"{path} is not a valid ONNX model.", received=_line(error), fix=_AGAIN) from error


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
