"""Many samples of any number and size, in batches: what ``Session.run_many`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from autorep_fx.errors import DataError
from autorep_fx.runtime.feeds import Array, InputSpecs

__all__ = ["batched", "run_in_batches"]

Sample = Array | tuple[Array, ...] | Mapping[str, Array]


def run_in_batches(
    run: Callable[[dict[str, Array]], list[Array]], samples: Iterable[Sample], specs: InputSpecs, batch_size: int
) -> list[list[Array]]:
    """Run samples in batches; a batch has samples of one size, and the results are in the order of the samples.

    Args:
        run: Runs a batch, by input name.
        samples: Each an array, a tuple of arrays in the order of the inputs, or a mapping by input name; without the
            batch axis.
        specs: What the model takes.
        batch_size: Largest number of samples in a batch; where the model has a fixed batch, its size.

    Returns:
        Per sample its outputs, without the batch axis.

    Raises:
        DataError: An input has no batch, or samples or the batch size do not fit; nothing was run in that case.
    """
    size = _batch_size(specs, batch_size)
    made = [_sample(index, sample, specs) for index, sample in enumerate(samples)]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, sample in enumerate(made):
        groups.setdefault(tuple(value.shape for value in sample.values()), []).append(index)
    fixed = _fixed(specs)
    left = [len(members) % fixed for members in groups.values() if fixed and len(members) % fixed]
    if left:
        raise DataError(
            f"The model takes exactly {fixed} samples at a time.", received=f"{left[0]} samples that are left over",
            fix=f"Pass a multiple of {fixed} samples of each size, or export with a dynamic batch.",
        )  # fmt: skip
    results: list[list[Array]] = [[] for _ in made]
    for members in groups.values():
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            outputs = run({name: np.stack([made[index][name] for index in chunk]) for name in specs.shapes})
            _check_outputs(outputs, len(chunk))
            for row, index in enumerate(chunk):
                results[index] = [output[row] for output in outputs]
    return results


def batched(specs: InputSpecs) -> Iterator[tuple[str, Any]]:
    """Inputs with the size of their first axis; the batch, where the model has one."""
    for name, shape in specs.shapes.items():
        yield name, (shape[0] if shape else None)


def _fixed(specs: InputSpecs) -> int:
    """The number of samples that the model takes at a time, or 0 where it takes any."""
    return next((size for _, size in batched(specs) if isinstance(size, int)), 0)


def _batch_size(specs: InputSpecs, asked: int) -> int:
    if asked < 1:
        raise DataError("A batch has one sample or more.", received=str(asked), fix="Pass batch_size=32.")
    sizes = {size for _, size in batched(specs)}
    if None in sizes or len(sizes) > 1:
        raise DataError(
            "These inputs cannot be put together sample by sample: their first axes are not one batch.",
            received=str(specs), fix="Call run() with whole inputs.",
        )  # fmt: skip
    return _fixed(specs) or asked


def _sample(index: int, sample: Sample, specs: InputSpecs) -> dict[str, Array]:
    """One sample by input name, checked as a batch of one."""
    fixed = _fixed(specs)
    args = sample if isinstance(sample, tuple) else () if isinstance(sample, Mapping) else (sample,)
    kwargs = sample if isinstance(sample, Mapping) else {}
    try:
        # A view with the batch axis of the whole batch: shapes are checked, and nothing is copied.
        feed = specs.feed(args, kwargs, lambda value: _widened(np.asarray(value), fixed or 1))
    except DataError as error:
        raise DataError(f"Sample {index}, as a batch of one: {error.what}", fix=error.fix) from error
    return {name: value[0] for name, value in feed.items()}


def _widened(value: Array, size: int) -> Array:
    return np.broadcast_to(value, (size, *value.shape))


def _check_outputs(outputs: list[Array], samples: int) -> None:
    wrong = [output.shape for output in outputs if output.ndim == 0 or len(output) != samples]
    if wrong:
        raise DataError(
            "An output of the model does not have one row per sample.", received=f"shape {wrong[0]}",
            fix="Call run() with whole batches.",
        )  # fmt: skip
