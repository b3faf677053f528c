"""Whether a model keeps its accuracy in fixed point: held-out samples, emulated, against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autorep_fx.errors import DataError
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.fixed_point import NodeRange, choose_settings, emulate
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.split import Split, split_model
from autorep_fx.runtime.session import Session

__all__ = ["FixedPointReport", "Flip", "fitting_settings", "verify_fixed_point"]

_BATCH = 64


@dataclass(frozen=True)
class Flip:
    """A sample whose class is another one in fixed point.

    Attributes:
        sample: Its position, from 0.
        clear: Class in the clear.
        fixed: Class in fixed point.
        margin: By how much the first led the second in the clear.
    """

    sample: int
    clear: int
    fixed: int
    margin: float


@dataclass(frozen=True)
class FixedPointReport:
    """What fixed point does to a model on held-out samples.

    Attributes:
        settings: Ring and fraction bits.
        samples: Samples.
        accuracy_clear: Share that is right in onnxruntime; None without labels.
        accuracy_fixed: Share that is right in emulated fixed point; None likewise.
        flips: Samples whose class changed.
        max_error: Largest difference of an output to onnxruntime's.
        ranges: Operations, the least headroom first.
        failures: Why the model must not be released; empty where it may.
    """

    settings: Settings
    samples: int
    accuracy_clear: float | None
    accuracy_fixed: float | None
    flips: tuple[Flip, ...]
    max_error: float
    ranges: tuple[NodeRange, ...]
    failures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "settings": self.settings.to_json(), "samples": self.samples, "accuracy_clear": self.accuracy_clear,
            "accuracy_fixed": self.accuracy_fixed, "flips": [vars(flip) for flip in self.flips],
            "max_error": self.max_error, "passed": not self.failures, "failures": list(self.failures),
            "operations": [
                {"name": r.name, "operator": r.operator, "largest": r.largest, "headroom": r.headroom(self.settings)}
                for r in self.ranges
            ],
        }  # fmt: skip


def verify_fixed_point(
    path: Path | str, inputs: Sequence[Array], labels: Array | None = None, settings: Settings | None = None, *,
    protocol: str = "cheetah", max_drop: float = 0.005, max_flips: float = 0.01, headroom: float = 2.0,
) -> FixedPointReport:  # fmt: skip
    """Emulate a model in fixed point on held-out samples, and judge whether it may be released.

    Args:
        path: The ONNX file; its first output ``(N, classes)`` is judged.
        inputs: Samples, each ``(N, ...)``.
        labels: Classes ``(N,)``.
        settings: Ring and fraction bits; unset, they are chosen from the ranges that the samples reach.
        protocol: Name of the protocol, where settings are chosen.
        max_drop: Largest loss of accuracy against the clear, as a share; needs labels.
        max_flips: Largest share of samples whose class may change.
        headroom: Bits that every operation must have left.

    Raises:
        EngineMissingError: jax is not there.
        ModelFileError: The file is not valid.
        SecureProgramError: It cannot be split, or has operations without a form.
        DataError: Inputs or labels do not fit.
        ProtocolError: No ring is large enough.
    """
    split = split_model(path)
    settings = settings or fitting_settings(split, inputs, protocol, headroom=headroom)
    found = emulate(split, inputs, settings, batch=_BATCH)
    session = Session(path, "cpu")
    batches = [tuple(value[start : start + _BATCH] for value in inputs) for start in range(0, len(inputs[0]), _BATCH)]
    clear = np.concatenate([
        session.run(*(v.astype(t) for v, t in zip(batch, session.types.values(), strict=True)))[0] for batch in batches
    ])  # fmt: skip
    fixed = found.outputs[0]
    _check(clear, labels)
    right = [None if labels is None else float((out.argmax(1) == labels).mean()) for out in (clear, fixed)]
    flips = _flips(clear, fixed)
    ranges = tuple(sorted(found.ranges, key=lambda item: item.headroom(settings)))
    failures = []
    if ranges and ranges[0].headroom(settings) < headroom:
        failures.append(f"{ranges[0].name} has {ranges[0].headroom(settings):.1f} bits of headroom, not {headroom:g}")
    if len(flips) > max_flips * len(clear):
        failures.append(f"{len(flips)} of {len(clear)} samples change their class, more than {max_flips:.2%}")
    if right[0] is not None and right[1] is not None and right[0] - right[1] > max_drop:
        failures.append(f"accuracy falls from {right[0]:.2%} to {right[1]:.2%}, by more than {max_drop:.2%}")
    return FixedPointReport(
        settings, len(clear), right[0], right[1], flips, float(np.abs(fixed - clear).max()), ranges, tuple(failures)
    )  # fmt: skip


def fitting_settings(split: Split, inputs: Sequence[Array], protocol: str, *, headroom: float = 2.0) -> Settings:
    """The smallest ring, and its fraction bits, for the ranges that a model reaches on samples.

    Raises:
        EngineMissingError: jax is not there.
        SecureProgramError: The program has operations without a form.
        DataError: The inputs do not fit.
        ProtocolError: No ring is large enough.
    """
    return choose_settings(
        emulate(split, inputs, None, protocol=protocol, batch=_BATCH).ranges, protocol, bits=headroom
    )


def _check(clear: Array, labels: Array | None) -> None:
    if clear.ndim != 2 or clear.shape[1] < 2:
        raise DataError(
            "The first output holds no scores of classes.", received=f"shape {clear.shape}",
            fix="Verify a classifier, whose output is (N, classes).",
        )  # fmt: skip
    if labels is not None and labels.shape != (len(clear),):
        raise DataError(
            "The labels do not fit the samples.", received=f"labels {labels.shape}, {len(clear)} samples",
            fix="Pass one class index per sample, (N,).",
        )  # fmt: skip


def _flips(clear: Array, fixed: Array) -> tuple[Flip, ...]:
    before, after = clear.argmax(1), fixed.argmax(1)
    two = np.sort(clear, 1)[:, -2:]
    return tuple(
        Flip(int(i), int(before[i]), int(after[i]), float(two[i, 1] - two[i, 0]))
        for i in np.flatnonzero(before != after)
    )
