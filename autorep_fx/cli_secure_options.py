"""What the commands ``secure`` share: options, and files of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autorep_fx.errors import DataError

__all__ = [
    "FractionOption", "InputOption", "JsonOption", "ModelArgument", "ProtocolOption", "RingOption", "model_file",
    "read_samples",
]  # fmt: skip

ModelArgument = Annotated[Path, typer.Argument(help="An exported model: .onnx, or a folder of a result.")]
ProtocolOption = Annotated[str, typer.Option(help="cheetah (two parties), aby3 (three), or semi2k (insecure dealer).")]
RingOption = Annotated[
    int,
    typer.Option(help="Bits of the ring: 32 (small products only), 64 or 128; 0 chooses by the ranges of the samples."),
]
FractionOption = Annotated[int, typer.Option(help="Fraction bits; 0 for the engine's own.")]
InputOption = Annotated[Path, typer.Option("--input", "-i", help="Samples: .npy (N, ...), or .npz with one per input.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result here, as JSON.")]


def model_file(model: Path) -> Path:
    """The ONNX file of a result, or the file itself."""
    return model / "model.onnx" if model.is_dir() else model


def read_samples(path: Path) -> list[Any]:
    """Arrays of a .npy or .npz file.

    Raises:
        DataError: It holds none.
    """
    import numpy as np

    if not path.is_file():
        raise DataError("There is no such file of samples.", received=str(path), fix="Pass a .npy or .npz file.")
    try:
        found = np.load(path, allow_pickle=False)
        return [found[key] for key in found.files] if hasattr(found, "files") else [found]
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} holds no samples.", received=str(error).splitlines()[0], fix="Pass a .npy or .npz file of numbers."
        ) from error
