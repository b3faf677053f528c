"""How an engine writes single elements into a secret tensor at public places, where a scatter would be a loop.

Two ways send nothing. One gather of all elements, from the tensor and the values beside each other, pays for every
element of the tensor. The other adds what changes: each change is spread over a row of zeros by a public mask, and a
product with a public 0/1 matrix puts the row where it belongs. Rows are dealt to blocks for that, one after the other,
so that the matrices stay small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["MOST_OF_A_BLOCK", "Cut", "most_at_random", "permutes"]

# Measured with spu 0.9.5 (SEMI2K and ABY3 in one process, 2 cores; 8,192 to 65,536 elements, 200 to 3,091 written):
# rows of 16 and 16 blocks were the fastest of rows of 16 to 64 and 4 to 64 blocks, or nearly; beyond 1,000 written,
# blocks of fewer elements were. With the next prime in place of 16 a ResNet-18 took as long.
_WIDTH, _BLOCKS, _OF_A_BLOCK = 16, 16, 96
# A gather takes 2 to 4 µs an element; both ways gather each written element, the second twice or so.
_GATHERED_TWICE = 3
#: Elements of one block up to which a product is formed. Reckoned, not measured: at 3 to 5 ns a multiplication a gather
#: of the whole axis is cheaper from 700 to 1,000, and the 0/1 matrices have as many numbers as the axis at 16.
MOST_OF_A_BLOCK = 512


def permutes(size: int, written: int) -> bool:
    """Whether one gather of all elements is the cheaper way."""
    return size <= _GATHERED_TWICE * written


@dataclass(frozen=True)
class Cut:
    """How an axis is cut for changes to be added; it is filled up with zeros to a whole number of rows in each block.

    Attributes:
        width: Elements of a row.
        blocks: Blocks; row ``r`` is in block ``r % blocks``.
        rows: Rows of a block.
    """

    width: int
    blocks: int
    rows: int

    @classmethod
    def of(cls, size: int, written: int) -> Cut:
        """For an axis of ``size`` elements, and so many that are written.

        The number of blocks is a prime, so that one place in every channel is not one block.
        """
        rows = math.ceil(size / _WIDTH)
        wished = max(_BLOCKS, math.ceil(written / _OF_A_BLOCK))
        blocks = min(_next_prime(wished), rows)
        return cls(_WIDTH, blocks, math.ceil(rows / blocks))


def _next_prime(number: int) -> int:
    while any(number % factor == 0 for factor in range(2, math.isqrt(number) + 1)):
        number += 1
    return number


def most_at_random(written: int, cut: Cut) -> int:
    """The most elements that one block is likely to get of ``written`` that go anywhere (Poisson)."""
    most, mean = 0, written / cut.blocks
    beyond = 1 - math.exp(-mean)
    term = math.exp(-mean)
    while cut.blocks * beyond > 0.5 and most < written:
        most += 1
        term *= mean / most
        beyond -= term
    return min(max(most, math.ceil(mean)), written, cut.rows * cut.width)
