"""Which form of a convolution a protocol is charged less for."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["multiplies_first"]


def multiplies_first(protocol: str, ring_bits: int, kernel: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a convolution is one product of every input pixel with all taps of the kernel, shifted and added after.

    SEMI2K opens the factors of a product: with windows unfolded, each input pixel once per window that it is in;
    multiplied first, once. What is opened are K bits per element and party either way. With strides most of the
    products of pixels and taps would be read by no window: 2 by 2 four times the work, for half of the bytes. ABY3 is
    charged for the elements of the result, of which there are as many times more as there are taps; CHEETAH's own
    convolution is not touched. The weights are integers of 2⁻¹⁶, whose products need 34 bits of fraction: a ring of 64.

    Args:
        protocol: Name of the protocol.
        ring_bits: Bits of the ring.
        kernel: Taps per axis.
        strides: Steps between windows per axis; empty for 1.
    """
    return protocol == "semi2k" and ring_bits == 64 and math.prod(strides) == 1 and math.prod(kernel) > 1
