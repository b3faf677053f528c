"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from autorep_fx.versions import installed

__all__ = ["describe_machine"]

_PACKAGES = ("autorep-fx", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy")


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, memory, load, GPU where it is used, and versions.

    Args:
        device: ``cuda`` or ``auto`` to ask for the GPU as well.
    """
    described: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": _cores(),
        "memory_bytes": _memory(),
        # Other work on the machine: well above the model's own threads, a measurement says little.
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), **installed(_PACKAGES)},
    }
    if device != "cpu":
        described["gpu"] = _gpu()
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _gpu() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
