"""Under what a run was made: versions, code, machine, seed."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

import torch

from autorep_fx.config import ExecutionConfig
from autorep_fx.versions import installed

__all__ = ["describe_run"]

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


def _revision() -> str | None:
    """Revision of the working directory's repository, with + where it has changes; None outside of one."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
