"""torch tensors in and out of onnxruntime without a copy, on the CPU and on CUDA. Needs torch when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autorep_fx.errors import DataError, DeviceError
from autorep_fx.runtime.feeds import InputSpecs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["device_id", "run_tensors"]


def run_tensors(
    session: Any, specs: InputSpecs, outputs: tuple[str, ...], device: str, args: tuple[Tensor, ...],
    kwargs: dict[str, Tensor],
) -> list[Tensor]:  # fmt: skip
    """Run a model on tensors where they lie.

    Args:
        session: onnxruntime's session.
        specs: What the model takes.
        outputs: Names of its outputs.
        device: ``cpu`` or ``cuda``.
        args: Inputs in order.
        kwargs: Inputs by name.

    Returns:
        Outputs on the same device, in memory of onnxruntime that is freed with them.

    Raises:
        DataError: An input is no tensor, needs gradients, or does not fit.
        DeviceError: An input lies elsewhere than the model runs, which would take a copy.
    """
    import torch

    if device not in ("cpu", "cuda"):
        raise DeviceError(
            "Only tensors on the CPU and on CUDA can be bound.", received=f"a session on {device}",
            fix="Call run() with NumPy arrays.",
        )  # fmt: skip
    number = device_id(session) if device == "cuda" else 0
    feed: dict[str, Any] = specs.feed(args, kwargs, _tensor)
    _check_places(feed, device, number)
    # Its strides are not passed on; a tensor that is contiguous already is not copied.
    feed = {name: value.contiguous() for name, value in feed.items()}
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_input(name, device, number, specs.types[name].type, tuple(value.shape), value.data_ptr())
    for name in outputs:
        binding.bind_output(name, device, number)
    if device == "cuda":  # onnxruntime has a stream of its own, which does not wait for torch's
        torch.cuda.current_stream(number).synchronize()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    # The capsule keeps the output alive; the pointer to it is shared, not its memory.
    return [torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()) for value in binding.get_outputs()]


def device_id(session: Any) -> int:
    """Number of the GPU that a CUDA session runs on."""
    return int(session.get_provider_options().get("CUDAExecutionProvider", {}).get("device_id", 0))


def _tensor(value: Any) -> Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        raise DataError("run_torch takes torch tensors.", received=type(value).__name__, fix="Call run() for arrays.")
    if value.requires_grad:
        raise DataError(
            "onnxruntime computes no gradients.", received="an input with requires_grad", fix="Pass tensor.detach()."
        )
    return value


def _check_places(feed: dict[str, Any], device: str, number: int) -> None:
    place = f"cuda:{number}" if device == "cuda" else "cpu"
    for name, value in feed.items():
        found = value.device
        there = found.type == device and (device == "cpu" or found.index == number)
        if not there:
            raise DeviceError(
                f"Input {name!r} is not where the model runs.", received=f"a tensor on {found}, a session on {place}",
                fix=f"Pass tensor.to({place!r}), or make the session with device={found.type!r}.",
            )  # fmt: skip
