"""Under what a run is made: versions, code, machine, seed, deterministic algorithms."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from autorep_fx.config import ExecutionConfig
from autorep_fx.versions import installed

__all__ = ["describe_run", "deterministic_algorithms"]

_PACKAGES = ("autorep-fx", "torch", "numpy", "lightning-fabric", "lightning", "safetensors")


def describe_run(*, seed: int, device: str, execution: ExecutionConfig) -> dict[str, Any]:
    """As plain values, for a JSON file.

    Args:
        seed: Seed of the run.
        device: ``cpu`` or ``cuda``.
        execution: Precision and the like.
    """
    return {
        "seed": seed,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "execution": execution.model_dump(mode="json"),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": installed(_PACKAGES),
        "git": _revision(),
    }


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms alone while it is entered, if they are wanted; torch's own setting comes back after it.

    An operation without one is torch's RuntimeError, which names it.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS counts as not deterministic
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _revision() -> str | None:
    """Revision of the working directory's repository, with + where it has changes; None outside of one."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
