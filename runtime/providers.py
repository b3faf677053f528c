"""Where a model runs: the choice of onnxruntime's execution providers, and whether they are really there."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from autorep_fx.errors import ConfigError, DeviceError, did_you_mean

__all__ = ["Choice", "Provider", "check_got", "choose"]

logger = logging.getLogger(__name__)

#: A provider by name, or by name and options.
Provider = str | tuple[str, Mapping[str, Any]]
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Choice:
    """What a session is asked to run on.

    Attributes:
        providers: In order of preference, as onnxruntime takes them.
        required: Names that must be there, in this order, once the session is made.
        reason: Why CUDA is not among them, where it might have been.
    """

    providers: tuple[Provider, ...]
    required: tuple[str, ...]
    reason: str = ""


def choose(onnxruntime: Any, device: str, providers: Sequence[Provider] | None) -> Choice:
    """Choose providers.

    Args:
        onnxruntime: The module.
        device: ``auto``, ``cpu`` or ``cuda``.
        providers: Providers in place of a device.

    Raises:
        DeviceError: The device or a provider does not exist, or two builds of onnxruntime are installed over each
            other where CUDA is asked for.
        ConfigError: Device and providers were both given.
    """
    if device not in _DEVICES:
        raise DeviceError("There is no such device.", received=repr(device), fix="Pass 'auto', 'cpu' or 'cuda'.")
    if providers is not None:
        return _explicit(onnxruntime, device, providers)
    _check_builds(device == "cuda")
    if device == "cpu":
        return Choice((_CPU,), (_CPU,))
    reason = _why_no_cuda(onnxruntime)
    wanted = (_CPU,) if reason else (_CUDA, _CPU)
    return Choice(wanted, (_CUDA,) if device == "cuda" else (), reason)


def _explicit(onnxruntime: Any, device: str, providers: Sequence[Provider]) -> Choice:
    if device != "auto":
        raise ConfigError(
            "A device and providers were both given.", received=f"device={device!r}, providers={list(providers)!r}",
            fix="Pass one of them.",
        )  # fmt: skip
    names = tuple(provider if isinstance(provider, str) else provider[0] for provider in providers)
    available = onnxruntime.get_available_providers()
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        raise DeviceError(
            f"This onnxruntime has no provider {unknown[0]!r}.{did_you_mean(unknown[0], available)}"
            if unknown else "There is no provider to run on.",
            received=f"providers {list(names)}", fix=f"Choose from {', '.join(available)}.",
        )  # fmt: skip
    _check_builds(_CUDA in names)
    if _CUDA in names:
        _why_no_cuda(onnxruntime)  # loads its libraries; whether it is there, the session tells
    return Choice(tuple(providers), names)


def check_got(choice: Choice, got: Sequence[str]) -> None:
    """Refuse a session that silently runs elsewhere: onnxruntime drops a provider that it cannot start.

    Raises:
        DeviceError: A required provider is missing, with the remedy.
    """
    if tuple(got[: len(choice.required)]) == choice.required:
        return
    missing = [name for name in choice.required if name not in got] or list(choice.required)
    where = "CUDA" if missing == [_CUDA] else ", ".join(missing)
    cuda = (
        "Install onnxruntime-gpu, an NVIDIA driver, and the CUDA and cuDNN libraries that it was built for "
        "(`import torch` first provides them); or pass device='cpu'."
    )
    raise DeviceError(
        f"The model does not run on {where}.",
        received=f"providers {', '.join(got)}" + (f"; {choice.reason}" if choice.reason else ""),
        fix=cuda if _CUDA in missing else "Install what the provider needs, or choose another one.",
    )


def _why_no_cuda(onnxruntime: Any) -> str:
    """Load CUDA's libraries; what is missing, or an empty text."""
    if _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime was built without CUDA"
    if not _preload_cuda(onnxruntime):
        return "there is no NVIDIA driver"
    return ""


def _check_builds(strict: bool) -> None:
    """The two builds share one folder: the one installed last wins, and uninstalling either breaks both."""
    found = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if len(found) < 2:
        return
    fix = "Run: pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them."
    if strict:
        raise DeviceError(
            "Two builds of onnxruntime are installed over each other.", received=", ".join(found), fix=fix
        )
    logger.warning("Two builds of onnxruntime are installed over each other (%s). %s", ", ".join(found), fix)


def _preload_cuda(onnxruntime: Any) -> bool:
    """Load the CUDA libraries that came with torch or as packages; False without a driver, where none can help."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the result is checked anyway
        onnxruntime.preload_dlls()
    return True
