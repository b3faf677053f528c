"""Where a square opens its factor once."""

from __future__ import annotations

__all__ = ["opens_once"]


def opens_once(protocol: str) -> bool:
    """Whether a square is charged less than a product of two values.

    SEMI2K opens both factors of a product under masks, K bits of each per element and party. A value that was opened
    can be used again: opened once, by a product that costs no more, its square sends nothing, so that K bits are left
    instead of 2K, with one more number for a call. ABY3 is charged for the result, of a square as of any product, and
    CHEETAH draws from a reserve of products.

    Args:
        protocol: Name of the protocol.
    """
    return protocol == "semi2k"
