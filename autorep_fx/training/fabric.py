"""Lightning Fabric, from whichever of its two distributions is installed, and what it was started with."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.config import ExecutionConfig
from autorep_fx.errors import DataError, DeviceError
from autorep_fx.passes.inputs import ExampleInputs

__all__ = ["is_first_process", "make_fabric", "resolve_device", "share_of"]

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


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


def make_fabric(device: str, execution: ExecutionConfig | None = None) -> Any:
    """A Fabric on one device; on all devices of the job in a process that ``torchrun`` or ``fabric run`` started.

    Args:
        device: ``cpu`` or ``cuda``.
        execution: For its precision.

    Raises:
        DeviceError: Half precision is asked for where it is not there, or ``fabric run`` was given something else.
    """
    precision = (execution or ExecutionConfig()).precision
    if device == "cpu" and precision == "16":
        raise DeviceError(
            "Mixed precision in float16 needs a GPU.", received="precision 16 on the CPU", fix="Use bf16 or 32."
        )
    for name in ("lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        fabric = importlib.import_module("lightning_fabric")
    except ModuleNotFoundError:  # the package `lightning` carries it under another name
        fabric = importlib.import_module("lightning.fabric")
    local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    options: dict[str, Any] = {"strategy": "ddp", "num_nodes": world // local} if world > 1 else {}
    try:
        result = fabric.Fabric(accelerator=device, devices=local, precision=_PRECISION[precision], **options)
    except ValueError as error:  # what the settings say and an option of `fabric run` contradict each other
        raise DeviceError(
            "Training cannot be set up as this process was started.", received=str(error),
            fix="Leave precision and strategy to the settings, and let --accelerator be the device.",
        ) from error  # fmt: skip
    if not os.environ.get("LT_CLI_USED"):  # `fabric run` has done so
        result.launch()
    return result


def is_first_process() -> bool:
    """Whether this process writes and prints for all of a parallel training, also before that has begun."""
    return os.environ.get("RANK", "0") == "0"


def share_of(inputs: ExampleInputs, targets: Any, rank: int, world: int) -> tuple[ExampleInputs, Any, float]:
    """The samples of a batch that one process takes, and the weight of its mean loss in the gradients' mean.

    Every process goes through the same batches and takes every ``world``-th sample, so that together they compute
    what one process does.

    Args:
        inputs: A whole batch.
        targets: Its targets.
        rank: Number of this process.
        world: Number of processes, at most the size of the batch.

    Raises:
        DataError: The batch is smaller.
    """
    if world == 1:
        return inputs, targets, 1.0
    size = inputs.size
    if size < world:
        raise DataError(
            "A batch has fewer samples than there are processes.", received=f"{size} samples, {world} processes",
            fix="Use larger batches; a DataLoader leaves out a short last one with drop_last=True.",
        )  # fmt: skip
    own = inputs.map(lambda tensor: tensor[rank::world])

    def take(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size
        return value[rank::world] if batched else value

    return own, pytree.tree_map(take, targets), own.size * world / size
