"""Checkpoints at epoch boundaries: state in safetensors, progress in JSON, each written atomically.

A checkpoint is one folder that is written beside its final place and then renamed, so a killed process leaves
either the old one or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autorep_fx.errors import CheckpointError, OutputError

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not stopped.

    Attributes:
        progress: Phase, epoch, history and notes, as JSON.
        model: State of the gated model.
        best: State of the best epoch so far; empty if there is none.
        optimizer: State of the optimiser.
        identity: Digest of model, settings and budget; a run may only resume a checkpoint of its own.
    """

    progress: Mapping[str, Any]
    model: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    identity: str


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``folder``, replacing what was there.

    Raises:
        OutputError: It cannot be written.
    """
    fresh, old = folder.with_name(f".{folder.name}-new"), folder.with_name(f".{folder.name}-old")
    try:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(_plain(checkpoint.model), fresh / "model.safetensors")
        save_file(_plain(checkpoint.best), fresh / "best.safetensors")
        torch.save(dict(checkpoint.optimizer), fresh / "optimizer.pt")
        header = {"format": _FORMAT, "identity": checkpoint.identity, "progress": checkpoint.progress}
        (fresh / "progress.json").write_text(json.dumps(header), encoding="utf-8")
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"The checkpoint {folder} cannot be written.",
            received=str(error),
            fix="Free some space, or pass another out_dir.",
        ) from error


def load_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """Read the checkpoint of this run; None if there is none.

    Raises:
        CheckpointError: It is damaged, or of another model, budget or settings.
    """
    old = folder.with_name(f".{folder.name}-old")
    folder = folder if folder.exists() else old  # killed between the two renames
    if not folder.exists():
        return None
    try:
        header = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        found = header["identity"]
        if header["format"] != _FORMAT or found != identity:
            raise CheckpointError(
                "The checkpoint is of another run.",
                received=f"{folder} with identity {found}",
                fix="Resume with the model, budget, seed and settings that it was made with, or use another out_dir.",
            )
        return Checkpoint(
            header["progress"], load_file(folder / "model.safetensors"), load_file(folder / "best.safetensors"),
            torch.load(folder / "optimizer.pt", weights_only=True), found,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged.",
            received=f"{type(error).__name__}: {error}",
            fix="Delete the folder to start again.",
        ) from error


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors takes: contiguous, on the CPU, no shared memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
