"""How an engine writes single elements into a secret tensor at public places, where a scatter would be a loop.

Two ways send nothing. One gather of all elements, from the tensor and the values beside each other, pays for every
element of the tensor. The other adds what changes: each change is spread over a row of zeros by a public mask, and a
product with a public 0/1 matrix puts the row where it belongs. The tensor is cut into blocks for that, so that the
matrices stay small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Cut", "most_at_random", "permutes"]

# Measured with spu 0.9.5 (SEMI2K and ABY3 in one process, 2 cores; 8,192 to 65,536 elements, 200 to 3,091 written):
# rows of 16 and 16 blocks were the fastest of rows of 16 to 64 and 4 to 64 blocks, or within a tenth of it; beyond
# 1,000 written, blocks of fewer elements were.
_WIDTH, _BLOCKS, _OF_A_BLOCK = 16, 16, 96
# A gather takes 2 to 4 µs an element; both ways gather each written element, the second twice or so.
_GATHERED_TWICE = 3


def permutes(size: int, written: int) -> bool:
    """Whether one gather of all elements is the cheaper way."""
    return size <= _GATHERED_TWICE * written


@dataclass(frozen=True)
class Cut:
    """How an axis is cut for changes to be added.

    Attributes:
        width: Elements of a row.
        blocks: Blocks of rows.
    """

    width: int
    blocks: int

    @classmethod
    def of(cls, size: int, written: int) -> Cut:
        """For an axis of ``size`` elements, both factors of it, and so many that are written."""
        width = max(width for width in range(1, _WIDTH + 1) if size % width == 0)
        wished = max(_BLOCKS, written / _OF_A_BLOCK)
        return cls(width, min(_divisors(size // width), key=lambda blocks: abs(math.log(blocks / wished))))


def _divisors(number: int) -> list[int]:
    small = [at for at in range(1, math.isqrt(number) + 1) if number % at == 0]
    return sorted({*small, *(number // at for at in small)})


def most_at_random(written: int, size: int, blocks: int) -> int:
    """The most elements that one block is likely to get of ``written`` that go anywhere (Poisson)."""
    most, mean = 0, written / blocks
    beyond = 1 - math.exp(-mean)
    term = math.exp(-mean)
    while blocks * beyond > 0.5 and most < written:
        most += 1
        term *= mean / most
        beyond -= term
    return min(max(most, math.ceil(mean)), written, size // blocks)
