"""Checkpoints: state in safetensors, progress in JSON, one folder per checkpoint, each written atomically.

A checkpoint is written beside its final place and then renamed: a process that is killed leaves the earlier ones, and
at most a folder whose name begins with a dot, which nothing reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
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

__all__ = ["Checkpoint", "latest", "load_checkpoint", "save_checkpoint"]

logger = logging.getLogger(__name__)
_FORMAT = 3
_DAMAGE = (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not stopped.

    Attributes:
        progress: Phase, epoch, step, history and notes, as JSON.
        model: State of the model.
        best: State of the best epoch so far; empty if there is none.
        averaged: State of the averaged weights; empty if there are none.
        loop: State of optimiser, random generators, scaler and data: tensors and plain values.
        identity: Digest of model, settings and budget; a run may only resume a checkpoint of its own.
    """

    progress: Mapping[str, Any]
    model: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    loop: Mapping[str, Any]
    identity: str


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, step: int, keep: int) -> Path:
    """Write ``checkpoint`` to ``folder/step-…``, and delete all but the last ``keep``.

    Raises:
        OutputError: It cannot be written.
    """
    target = folder / f"step-{step:09d}"
    fresh = folder / f".{target.name}"
    try:
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in ("model", "best", "averaged"):
            save_file(_plain(getattr(checkpoint, name)), fresh / f"{name}.safetensors")
        torch.save(dict(checkpoint.loop), fresh / "loop.pt")
        header = {
            "format": _FORMAT, "identity": checkpoint.identity, "progress": checkpoint.progress,
            "sha256": {path.name: _sha256(path) for path in sorted(fresh.iterdir())},
        }  # fmt: skip
        (fresh / "progress.json").write_text(json.dumps(header), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)  # of the same step, when a phase ends where it was saved anyway
        os.replace(fresh, target)
        for old in _saved(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"The checkpoint {target} cannot be written.",
            received=str(error),
            fix="Free some space, or pass another out_dir.",
        ) from error
    return target


def latest(folder: Path | None) -> Path | None:
    """The folder of the last checkpoint, if there is one."""
    found = [] if folder is None else _saved(folder)
    return found[-1] if found else None


def load_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """Read the last checkpoint of this run that is not damaged; None if there is none at all.

    Raises:
        CheckpointError: All are damaged, or the last is of another model, budget or settings.
    """
    damage: list[str] = []
    for path in reversed(_saved(folder)):
        try:
            return _read(path, identity)
        except _DAMAGE as error:
            damage.append(f"{path.name}: {type(error).__name__}: {error}")
            logger.warning("the checkpoint %s is damaged, looking for an earlier one", path)
    if damage:
        raise CheckpointError(
            f"The checkpoints in {folder} are damaged.",
            received="; ".join(damage),
            fix="Delete the folder to start again.",
        )
    return None


def _read(path: Path, identity: str) -> Checkpoint:
    header = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    found = header["identity"]
    if header["format"] != _FORMAT or found != identity:
        raise CheckpointError(
            "The checkpoint is of another run.",
            received=f"{path} with identity {found}",
            fix="Resume with the model, budget, seed and settings that it was made with, or use another out_dir.",
        )
    changed = [name for name, digest in header["sha256"].items() if _sha256(path / name) != digest]
    if changed:
        raise ValueError(f"the content of {', '.join(changed)} has changed")
    model, best, averaged = (load_file(path / f"{name}.safetensors") for name in ("model", "best", "averaged"))
    loop = torch.load(path / "loop.pt", weights_only=True, map_location="cpu")
    return Checkpoint(header["progress"], model, best, averaged, loop, found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _saved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors takes: contiguous, on the CPU, no shared memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
