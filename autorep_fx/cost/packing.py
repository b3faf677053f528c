"""Homomorphic products of matrices: how many ciphertexts travel, as SPU's CHEETAH packs matrices into polynomials.

For ``(m, k) @ (k, n)`` the engine cuts both matrices into blocks of at most N coefficients, N the degree of the
polynomials. The factor with fewer blocks is encrypted and sent, the other party multiplies, and sends back blocks of
the result. Where the result is more than one block, the blocks are first packed into each other: as many ciphertexts
become one as a block has columns of the first factor. Both cross terms of two shares are computed, so that each party
is once the one that encrypts.
"""

from __future__ import annotations

import functools
import math

from pydantic import BaseModel, ConfigDict

__all__ = ["Ciphertexts", "Packing", "ciphertexts"]

# What the engine weighs a ciphertext with, against an automorphism and against ten products.
_CIPHERTEXT, _MULTIPLICATION = 1000.0, 0.1


class Packing(BaseModel):
    """Sizes of what travels in a product of matrices.

    Attributes:
        degree: Coefficients of a polynomial.
        request: Bytes of a ciphertext that is sent to be multiplied.
        packed: Bytes of a ciphertext that comes back packed.
        single: Bytes of one that comes back as it is, without the coefficients of its result.
        coefficient: Bytes per coefficient in that case.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    degree: int
    request: float
    packed: float
    single: float
    coefficient: float

    def party_bytes(self, rows: int, inner: int, columns: int) -> float:
        """Bytes that one party sends for a product ``(rows, inner) @ (inner, columns)``."""
        sent = ciphertexts(rows, inner, columns, self.degree)
        if sent.packs:
            return sent.requests * self.request + sent.responses * self.packed
        return sent.requests * self.request + sent.responses * self.single + rows * columns * self.coefficient

    def party_messages(self, rows: int, inner: int, columns: int) -> int:
        """Messages that one party sends for it: one per ciphertext."""
        sent = ciphertexts(rows, inner, columns, self.degree)
        return sent.requests + sent.responses

    def rotations(self, rows: int, inner: int, columns: int) -> int:
        """Columns by which one party packs what it sends back; 0 where it does not."""
        sent = ciphertexts(rows, inner, columns, self.degree)
        return sent.responses * sent.depth if sent.packs else 0

    def blocks(self, rows: int, inner: int, columns: int) -> int:
        """Blocks of the result."""
        return ciphertexts(rows, inner, columns, self.degree).blocks


class Ciphertexts(BaseModel):
    """Ciphertexts of one cross term.

    Attributes:
        requests: Sent by the party that encrypts.
        responses: Sent back.
        packs: Whether these are packed.
        depth: Columns of the first factor in a block.
        blocks: Blocks of the result.
    """

    model_config = ConfigDict(frozen=True)

    requests: int
    responses: int
    packs: bool
    depth: int
    blocks: int


@functools.lru_cache(maxsize=4096)
def ciphertexts(rows: int, inner: int, columns: int, degree: int) -> Ciphertexts:
    """How many ciphertexts a cross term of ``(rows, inner) @ (inner, columns)`` takes."""
    sizes = (rows, inner, columns)
    block = _block(sizes, degree, packs=True)
    first, _, last = (math.ceil(size / part) for size, part in zip(sizes, block, strict=True))
    packs = first * last > 1
    if not packs:
        block = _block(sizes, degree, packs=False)
    first, middle, last = (math.ceil(size / part) for size, part in zip(sizes, block, strict=True))
    responses = math.ceil(first * last / block[1]) if packs else first * last
    requests = min(first, last) * middle
    return Ciphertexts(requests=requests, responses=responses, packs=packs, depth=block[1], blocks=first * last)


def _block(sizes: tuple[int, int, int], degree: int, *, packs: bool) -> tuple[int, int, int]:
    """The block that the engine finds cheapest; of equally cheap ones the last."""
    rows, inner, columns = sizes
    automorphisms = math.ceil(rows * columns / degree) if packs else 0
    best, found = math.inf, (1, 1, 1)
    for height in range(1, min(degree, rows) + 1):
        depth = 1
        while depth <= inner and height * depth <= degree:
            width = min(columns, degree // height // depth)
            first, middle, last = math.ceil(rows / height), math.ceil(inner / depth), math.ceil(columns / width)
            sent = min(first, last) * middle + math.ceil(first * last / depth)
            price = sent * _CIPHERTEXT + automorphisms * depth + first * middle * last * _MULTIPLICATION
            if price <= best:
                best, found = price, (height, depth, width)
            depth = depth * 2 if packs else depth + 1
    return found
