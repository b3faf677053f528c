"""Lightning Fabric, from whichever of its two distributions is installed."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch

from autorep_fx.errors import DeviceError

__all__ = ["make_fabric", "resolve_device"]


def resolve_device(device: str | None) -> str:
    """``cpu`` or ``cuda``; None is CUDA where there is one.

    Raises:
        DeviceError: CUDA was asked for and is not there, or the name is unknown.
    """
    available = torch.cuda.is_available()
    if device is None:
        return "cuda" if available else "cpu"
    kind = str(device).split(":", maxsplit=1)[0]
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not available):
        raise DeviceError(
            "This device cannot be used.",
            received=f"{device!r}; CUDA is {'' if available else 'not '}available to torch",
            fix="Pass device='cpu', or install a CUDA build of torch and a driver.",
        )
    return kind


def make_fabric(device: str) -> Any:
    """A Fabric on one device."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = importlib.import_module("lightning_fabric")
    except ModuleNotFoundError:  # the package `lightning` carries it under another name
        fabric = importlib.import_module("lightning.fabric")
    return fabric.Fabric(accelerator=device, devices=1)
