"""Windows over the spatial axes of ``(N, C, *S)``, as one strided slice per position in the window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

from autorep_fx.runtime.secure.ops.call import Value
from autorep_fx.runtime.secure.ops.zero import zero_like
from autorep_fx.runtime.secure.public import Node

__all__ = ["Windows", "window_obstacles"]


@dataclass(frozen=True)
class Windows:
    """Sizes of the windows of one operation, per spatial axis.

    Attributes:
        kernel: Taps.
        strides: Steps between windows.
        dilations: Steps between taps.
        low: Padding before.
        high: Padding after, as far as windows reach.
        counts: Windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
        """The windows of an operation on an input of spatial ``sizes``."""
        axes = len(sizes)
        strides = tuple(node.attributes.get("strides", [1] * axes))
        dilations = tuple(node.attributes.get("dilations", [1] * axes))
        pads = node.attributes.get("pads", [0] * 2 * axes)
        ceil = bool(node.attributes.get("ceil_mode", 0))
        counts, high = [], []
        for axis in range(axes):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            room = sizes[axis] + pads[axis] + pads[axis + axes] - reach
            count = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
            if ceil and (count - 1) * strides[axis] >= sizes[axis] + pads[axis]:
                count -= 1  # a window that begins in the padding is none
            counts.append(count)
            high.append(max((count - 1) * strides[axis] + reach - sizes[axis] - pads[axis], 0))
        return cls(tuple(kernel), strides, dilations, tuple(pads[:axes]), tuple(high), tuple(counts))

    @property
    def padded(self) -> bool:
        """Whether any window reaches outside."""
        return any(self.low) or any(self.high)

    def pad(self, x: Value, mode: str) -> Value:
        """``x`` with its padding, by zeros (``constant``) or by the elements at the border (``edge``)."""
        if not self.padded:
            return x
        pads = [(0, 0), (0, 0), *zip(self.low, self.high, strict=True)]
        if mode == "constant":
            return lax.pad(x, zero_like(x), [(low, high, 0) for low, high in pads])
        return jnp.pad(x, pads, mode=mode)

    def slices(self, padded: Value) -> Iterator[Value]:
        """Per tap, in row-major order, its element of every window: ``(N, C, *counts)``."""
        return (self.tap(padded, index) for index in range(math.prod(self.kernel)))

    def tap(self, padded: Value, index: int, rows: range | None = None) -> Value:
        """Of every window the element at tap ``index``, in row-major order; of these rows of the first axis."""
        start = [
            int(tap) * step for tap, step in zip(np.unravel_index(index, self.kernel), self.dilations, strict=True)
        ]
        stop = [
            first + (count - 1) * stride + 1
            for first, count, stride in zip(start, self.counts, self.strides, strict=True)
        ]
        rows = range(padded.shape[0]) if rows is None else rows
        return lax.slice(
            padded, (rows.start, 0, *start), (rows.stop, padded.shape[1], *stop), (1, 1, *self.strides)
        )  # fmt: skip

    def inside(self, sizes: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """How many taps of each window are no padding, ``(1, 1, *counts)``."""
        result = np.ones((1, 1), dtype=np.float32)
        for axis, size in enumerate(sizes):
            position = (
                np.arange(self.counts[axis])[:, None] * self.strides[axis]
                + np.arange(self.kernel[axis])[None, :] * self.dilations[axis]
                - self.low[axis]
            )
            taps = ((position >= 0) & (position < size)).sum(1).astype(np.float32)
            result = result[..., None] * taps
        return result


def window_obstacles(node: Node) -> list[str]:
    """What of an operation's windows has no form here."""
    problems = []
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        problems.append(f"auto_pad {node.attributes['auto_pad']}")
    if any(size < 0 for size in node.attributes.get("pads", ())):
        problems.append("negative padding")
    return problems
