"""An onnxruntime session over a compiled model, NumPy in and out."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autorep_fx.errors import DataError, DeviceError, ModelFileError

__all__ = ["Session"]

logger = logging.getLogger(__name__)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

Array = npt.NDArray[Any]


class Session:
    """Runs an ONNX file.

    Args:
        path: The file.
        device: ``cpu``; ``cuda``, which fails if the model does not really run there; or ``auto``, which takes CUDA
            where it works and logs what it chose.
        threads: Threads inside an operator on the CPU; 0 lets onnxruntime decide.

    Attributes:
        device: Where it runs: ``cpu`` or ``cuda``.
        inputs: Input name → shape, with names for dynamic axes.
        outputs: Output names.
        sizes: Sizes that are free beside the batch, ``height`` and ``width``, with what each may be.

    Raises:
        ModelFileError: The file is missing or cannot be loaded.
        DeviceError: CUDA was asked for and not got, or two onnxruntime builds are installed over each other.
    """

    def __init__(self, path: Path | str, device: Literal["auto", "cpu", "cuda"] = "auto", *, threads: int = 0) -> None:
        import onnxruntime  # a heavy import, made when a model is run

        path = Path(path)
        if device not in ("auto", *_PROVIDERS):
            raise DeviceError("There is no such device.", received=repr(device), fix="Pass 'auto', 'cpu' or 'cuda'.")
        if not path.is_file():
            raise ModelFileError(f"There is no model file {path}.", fix="Pass the path of an exported .onnx file.")
        _check_builds(device)
        wanted = ["cuda", "cpu"] if device == "auto" else [device]
        available = onnxruntime.get_available_providers()
        chosen = [name for name in wanted if _PROVIDERS[name] in available]
        if "cuda" in chosen and not _preload_cuda(onnxruntime):
            chosen.remove("cuda")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Without CUDA libraries onnxruntime logs an error and goes on; what it really uses is checked below.
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[_PROVIDERS[name] for name in chosen] or [_PROVIDERS["cpu"]]
            )
        except Exception as error:  # onnxruntime raises a type of its own per cause
            raise ModelFileError(
                f"onnxruntime cannot load {path}.",
                received=str(error).splitlines()[0],
                fix="Check the file with `autorep-fx verify`, and export it again.",
            ) from error
        self.device = "cuda" if self._session.get_providers()[0] == _PROVIDERS["cuda"] else "cpu"
        if device == "cuda" and self.device != "cuda":
            raise DeviceError(
                "The model does not run on CUDA.",
                received=f"providers {', '.join(self._session.get_providers())}",
                fix="Install onnxruntime-gpu with matching CUDA and cuDNN libraries (`import torch` first provides "
                "them), or pass device='cpu'.",
            )
        if device == "auto":
            logger.info("%s runs on %s", path.name, self.device)
        self.inputs = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self._types = {value.name: _numpy_type(value.type) for value in self._session.get_inputs()}
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.sizes: dict[str, dict[str, Any]] = json.loads(metadata.get("autorep_fx.sizes", "{}"))

    def run(self, *args: Array, **kwargs: Array) -> list[Array]:
        """Run the model.

        Args:
            *args: Inputs in order, each ``(N, ...)``.
            **kwargs: Inputs by name.

        Returns:
            All outputs in order.

        Raises:
            DataError: Inputs are missing, unknown, or of another shape or type.
        """
        feed = self._feed(args, kwargs)
        result: list[Array] = self._session.run(None, feed)
        return result

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in self.inputs.items())
        return f"Session({inputs} → {', '.join(self.outputs)}, on {self.device})"

    def __call__(self, *args: Array, **kwargs: Array) -> Any:
        """Run the model; one output comes back as an array, several as a list."""
        outputs = self.run(*args, **kwargs)
        return outputs[0] if len(outputs) == 1 else outputs

    def zeros(self, batch: int) -> dict[str, Array]:
        """Inputs of the right names, shapes and types, filled with zeros.

        Height and width are those that the file is counted at, where they are free; other free axes have size
        ``batch``.
        """
        free = {name: size["example"] for name, size in self.sizes.items()}
        return {
            name: np.zeros([s if isinstance(s, int) else free.get(s, batch) for s in shape], self._types[name])
            for name, shape in self.inputs.items()
        }

    def _feed(self, args: tuple[Array, ...], kwargs: Mapping[str, Array]) -> dict[str, Array]:
        feed = dict(zip(self.inputs, args, strict=False)) | dict(kwargs)
        problems = [f"input {name!r} is missing" for name in self.inputs if name not in feed]
        problems += [f"there is no input {name!r}" for name in kwargs if name not in self.inputs]
        if len(args) > len(self.inputs):
            problems.append(f"{len(args)} inputs were given, the model takes {len(self.inputs)}")
        for name in self.inputs:
            if name in feed:
                value = feed[name] = np.asarray(feed[name])
                problems += self._problems(name, value)
        if problems:
            expected = ", ".join(f"{n}: {self._types[n]} {_shape(s)}" for n, s in self.inputs.items())
            raise DataError(
                "The inputs do not fit the model:\n" + "\n".join(f"  {p}" for p in problems),
                fix=f"Pass {expected}.",
            )
        return feed

    def _problems(self, name: str, value: Array) -> list[str]:
        shape, problems = self.inputs[name], []
        fits = len(shape) == value.ndim and all(
            not isinstance(size, int) or size == found for size, found in zip(shape, value.shape, strict=True)
        )
        if not fits:
            problems.append(f"input {name!r} has shape {value.shape}, expected {_shape(shape)}")
        if value.dtype != self._types[name]:
            problems.append(f"input {name!r} is {value.dtype}, expected {self._types[name]}")
        if fits:
            problems += [
                f"input {name!r} has {axis} {found}; the model takes {_allowed(self.sizes[axis])}"
                for axis, found in zip(shape, value.shape, strict=True)
                if axis in self.sizes and not _takes(self.sizes[axis], found)
            ]
            named = {axis: found for axis, found in zip(shape, value.shape, strict=True) if axis in self.sizes}
            if any(named.get(axis, found) != found for axis, found in zip(shape, value.shape, strict=True)):
                problems.append(f"input {name!r} has shape {value.shape}; axes of one name have one size")
        return problems


def _takes(size: Mapping[str, Any], found: int) -> bool:
    most = size["most"] or found
    return bool(size["least"] <= found <= most and (found - size["example"]) % size["step"] == 0)


def _allowed(size: Mapping[str, Any]) -> str:
    bounds = f"{size['least']} or more" if size["most"] is None else f"{size['least']} to {size['most']}"
    return bounds + (f", as {size['example']} ± multiples of {size['step']}" if size["step"] > 1 else "")


def _shape(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(str(size) for size in shape)})"


def _numpy_type(onnx_type: str) -> np.dtype[Any]:
    """``float32`` for ``tensor(float)``."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _check_builds(device: str) -> None:
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
    if device == "cuda":
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
