"""Batches in one form: what goes into the model, and the targets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.errors import DataError
from autorep_fx.passes.inputs import ExampleInputs

__all__ = ["TARGET_KEYS", "check_iterable", "collect_samples", "count_batches", "set_epoch", "split_batch"]

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def split_batch(batch: Any) -> tuple[ExampleInputs, Any]:
    """Inputs and targets of a batch.

    Args:
        batch: ``(inputs, targets)``, where inputs is a tensor, a tuple or a mapping; or one mapping whose targets are
            under ``labels``, ``label``, ``targets``, ``target`` or ``y``.

    Raises:
        DataError: It is neither, holds no sample, or is not finite.
    """
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is None:
            raise DataError(
                "A mapping batch carries its targets under one of " + ", ".join(TARGET_KEYS) + ".",
                received=f"keys {', '.join(map(str, batch))}",
                fix="Rename the key, or yield (inputs, targets).",
            )
        return ExampleInputs.of({k: v for k, v in batch.items() if k != key}), batch[key]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return ExampleInputs.of(batch[0]), batch[1]
    raise DataError(
        "A batch is (inputs, targets) or a mapping.",
        received=f"{type(batch).__name__}" + (f" of {len(batch)} items" if isinstance(batch, (tuple, list)) else ""),
        fix="Yield pairs, such as those of torch.utils.data.DataLoader over (image, label).",
    )


def check_iterable(data: Any, name: str) -> None:
    """Check that ``data`` can be gone through more than once and holds a batch.

    Raises:
        DataError: It is an iterator, is empty, or is no iterable at all.
    """
    if not isinstance(data, Iterable):
        raise DataError(
            f"{name} is an iterable of batches.",
            received=type(data).__name__,
            fix="Pass a DataLoader or a list of (inputs, targets).",
        )
    if iter(data) is data:
        raise DataError(
            f"{name} can be gone through only once, and training goes through it once per epoch.",
            received=f"an iterator ({type(data).__name__})",
            fix="Pass a DataLoader, or a list made of it.",
        )
    with contextlib.suppress(TypeError):  # no length: that there is a batch shows when it is gone through
        if len(data) == 0:  # type: ignore[arg-type]
            raise _no_batch(name)


@runtime_checkable
class _Epochs(Protocol):
    def set_epoch(self, epoch: int) -> None: ...


def set_epoch(data: Any, epoch: int) -> None:
    """Choose the epoch of data whose order depends on it, as that of this project's ``Batches``."""
    if isinstance(data, _Epochs):
        data.set_epoch(epoch)


def count_batches(data: Any, name: str) -> int:
    """Batches of one epoch, counted by going through it where it has no length.

    Raises:
        DataError: There is none.
    """
    try:
        number = len(data)
    except TypeError:  # no length, or that of a loader over an iterable data set
        number = sum(1 for _ in data)
    if not number:
        raise _no_batch(name)
    return int(number)


def _no_batch(name: str) -> DataError:
    return DataError(f"{name} holds no batch.", fix="Pass data with at least one batch.")


def collect_samples(data: Iterable[Any], count: int, like: ExampleInputs) -> ExampleInputs:
    """The inputs of the first ``count`` samples, in one batch; with free sizes only those of the first batch's.

    Args:
        data: Batches ``(inputs, targets)``.
        count: How many samples; where the batch is fixed, as many as it has.
        like: Inputs that say which of the tensors are batched, and whether the batch is fixed.

    Raises:
        DataError: There is no batch, or samples have another shape than those of ``like``.
    """
    count = like.size if like.fixed_batch else count
    parts: list[ExampleInputs] = []
    for batch in data:
        part = replace(split_batch(batch)[0], batched=like.flags(), any_size=like.any_size)
        like.check_same_shapes(part)
        if like.any_size and parts and _shapes(part) != _shapes(parts[0]):
            continue
        parts.append(part)
        if sum(part.size for part in parts) >= count:
            break
    if not parts:
        raise DataError("The data hold no batch.", fix="Pass data with at least one batch.")
    found = sum(part.size for part in parts)
    joined = _concatenate(parts).resized(count if like.fixed_batch else min(count, found))
    return replace(joined, fixed_batch=like.fixed_batch)


def _shapes(inputs: ExampleInputs) -> list[Any]:
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    return [leaf.shape[int(b) :] for leaf, b in zip(leaves, inputs.flags(), strict=True) if isinstance(leaf, Tensor)]


def _concatenate(parts: list[ExampleInputs]) -> ExampleInputs:
    flat = [pytree.tree_flatten((part.args, dict(part.kwargs))) for part in parts]
    columns = zip(parts[0].flags(), zip(*(leaves for leaves, _ in flat), strict=True), strict=True)
    leaves = [torch.cat(column) if batched else column[0] for batched, column in columns]
    args, kwargs = pytree.tree_unflatten(leaves, flat[0][1])
    return replace(parts[0], args=args, kwargs=kwargs)
