"""An onnxruntime session over a compiled model, NumPy in and out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autorep_fx.errors import ConfigError, ModelFileError
from autorep_fx.runtime.batches import Sample, run_in_batches
from autorep_fx.runtime.binding import run_tensors
from autorep_fx.runtime.feeds import Array, InputSpecs, numpy_type
from autorep_fx.runtime.model_file import MAX_BYTES, Digests, check_model_file
from autorep_fx.runtime.providers import Provider, check_got, choose

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Session"]

logger = logging.getLogger(__name__)
Spinning = Literal["always", "running", "never"]
# Threads that spin are there at once when the next operator starts, and take their cores from others meanwhile.
_SPINNING: dict[str, tuple[str, str] | None] = {
    "always": None,  # onnxruntime's default: some milliseconds after a run, too
    "running": ("session.force_spinning_stop", "1"),
    "never": ("session.intra_op.allow_spinning", "0"),
}


class Session:
    """Runs an ONNX file; may be called from several threads at once.

    The file is checked first, as one that somebody else may have made: its size, where its weights are, and the ONNX
    checker.

    Args:
        path: The file.
        device: ``cpu``; ``cuda``, which fails if the model does not really run there; or ``auto``, which takes CUDA
            where it works and logs what it chose.
        providers: onnxruntime's execution providers in order of preference, in place of a device: names, or pairs of
            a name and options. Each of them must really be there.
        threads: Threads inside an operator on the CPU; 0 lets onnxruntime decide.
        spinning: Whether idle threads wait in a loop: ``always`` (onnxruntime's default), only while the model is
            ``running``, or ``never``, for a machine that has other work.
        max_bytes: Largest size of the file with its external data, in bytes; None for no limit.
        sha256: Expected SHA-256 of the file, in hexadecimal; or digests by file name, as ``files`` in ``plan.json``
            has them, which must cover external data too.
        profile: Write a profile of every run, to a file whose name begins so; see :meth:`end_profile`.

    Attributes:
        device: Where it runs: ``cpu``, ``cuda``, or the first provider's name.
        providers: The providers that are really there, in order.
        inputs: Input name → shape, with names for dynamic axes.
        types: Input name → NumPy type.
        outputs: Output names.
        sizes: Sizes that are free beside the batch, ``height`` and ``width``, with what each may be.

    Raises:
        ModelFileError: The file is missing, too large, not the one that was expected, names files outside of its
            folder, or cannot be loaded.
        DeviceError: What was asked for is not there, or two onnxruntime builds are installed over each other.
        ConfigError: Device and providers were both given, or a setting of the threads is none.
    """

    def __init__(
        self, path: Path | str, device: Literal["auto", "cpu", "cuda"] = "auto", *,
        providers: Sequence[Provider] | None = None, threads: int = 0, spinning: Spinning = "always",
        max_bytes: int | None = MAX_BYTES, sha256: Digests = None, profile: Path | str | None = None,
    ) -> None:  # fmt: skip
        import onnxruntime  # a heavy import, made when a model is run

        choice = choose(onnxruntime, device, providers)
        options = _options(onnxruntime, threads, spinning, profile)
        checked = check_model_file(path, max_bytes=max_bytes, sha256=sha256)
        try:
            self._session = onnxruntime.InferenceSession(str(checked.path), options, providers=list(choice.providers))
        except Exception as error:  # onnxruntime raises a type of its own per cause
            raise ModelFileError(
                f"onnxruntime cannot load {path}.",
                received=str(error).splitlines()[0],
                fix="Check the file with `autorep-fx verify`, and export it again.",
            ) from error
        checked.require_unchanged()
        self.providers = tuple(self._session.get_providers())
        check_got(choice, self.providers)
        if choice.required:
            self._session.disable_fallback()  # a failing run raises; otherwise it is repeated on the CPU, unasked
        self.device = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}.get(
            self.providers[0], self.providers[0]
        )
        if device == "auto" and providers is None:
            logger.info("%s runs on %s%s", checked.path.name, self.device, f": {choice.reason}" * bool(choice.reason))
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.sizes: dict[str, dict[str, Any]] = json.loads(metadata.get("autorep_fx.sizes", "{}"))
        self.inputs = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self.types = {value.name: numpy_type(value.type) for value in self._session.get_inputs()}
        self._specs = InputSpecs(self.inputs, self.types, self.sizes)
        self.outputs = tuple(value.name for value in self._session.get_outputs())

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
        return self._run(self._specs.feed(args, kwargs))

    def check(self, *args: Array, **kwargs: Array) -> dict[str, Array]:
        """Inputs by name, if they fit the model, without running it.

        Raises:
            DataError: As of :meth:`run`.
        """
        return self._specs.feed(args, kwargs)

    def _run(self, feed: dict[str, Array]) -> list[Array]:
        result: list[Array] = self._session.run(None, feed)
        return result

    def __repr__(self) -> str:
        inputs = ", ".join(f"{n} ({', '.join(map(str, shape))})" for n, shape in self.inputs.items())
        return f"Session({inputs} → {', '.join(self.outputs)}, on {self.device})"

    def __call__(self, *args: Array, **kwargs: Array) -> Any:
        """Run the model; one output comes back as an array, several as a list."""
        outputs = self.run(*args, **kwargs)
        return outputs[0] if len(outputs) == 1 else outputs

    def run_many(self, samples: Iterable[Sample], *, batch_size: int = 32) -> list[Any]:
        """Run any number of samples, in batches of samples of one size.

        Args:
            samples: Samples without the batch axis: each an array, a tuple of arrays in the order of the inputs, or a
                mapping by input name. Heights and widths may differ where the model leaves them free.
            batch_size: Largest batch; a model with a fixed batch takes its own.

        Returns:
            Per sample, in order, its output without the batch axis; a list of them where there are several.

        Raises:
            DataError: A sample does not fit, by its index, before any is run; or the model has no batch.
        """
        results = run_in_batches(self._run, samples, self._specs, batch_size)
        return [outputs[0] if len(outputs) == 1 else outputs for outputs in results]

    def run_torch(self, *args: Tensor, **kwargs: Tensor) -> list[Tensor]:
        """Run the model on torch tensors where they lie, on the CPU or on CUDA, without a copy of inputs or outputs.

        A tensor that is not contiguous is made so first.

        Returns:
            All outputs in order, on the same device.

        Raises:
            DataError: Inputs do not fit, are no tensors, or need gradients.
            DeviceError: A tensor lies on another device than the model runs on.
        """
        return run_tensors(self._session, self._specs, self.outputs, self.device, args, kwargs)

    def warm_up(self, *batches: int, runs: int = 1) -> float:
        """Run zeros, so that no request pays for what the first run of a batch size sets up.

        Args:
            *batches: Batch sizes; 1 if none is given.
            runs: Runs of each.

        Returns:
            Seconds that the last run took.
        """
        seconds = 0.0
        for batch in batches or (1,):
            feed = self.zeros(batch)
            for _ in range(runs):
                start = time.perf_counter()
                self._run(feed)
                seconds = time.perf_counter() - start
        return seconds

    def zeros(self, batch: int) -> dict[str, Array]:
        """Inputs of the right names, shapes and types, filled with zeros.

        Height and width are those that the file is counted at, where they are free; other free axes have size
        ``batch``.
        """
        return self._specs.zeros(batch)

    def end_profile(self) -> Path:
        """Stop profiling and return the path of the profile, JSON in the format of Chrome's trace viewer."""
        return Path(self._session.end_profiling())


def _options(onnxruntime: Any, threads: int, spinning: str, profile: Path | str | None) -> Any:
    if threads < 0:
        raise ConfigError(
            "The number of threads is negative.", received=str(threads), fix="Pass 0 for onnxruntime's choice, or more."
        )
    if spinning not in _SPINNING:
        raise ConfigError(
            "There is no such setting of idle threads.", received=repr(spinning), fix=f"Pass {', '.join(_SPINNING)}."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Without CUDA libraries onnxruntime logs an error and goes on; what it really uses is checked afterwards.
    options.log_severity_level = 4
    entry = _SPINNING[spinning]
    if entry is not None:
        options.add_session_config_entry(*entry)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options
