"""Homomorphic products of matrices: ciphertexts and bytes as spu 0.9.5 sent them."""

from __future__ import annotations

import pytest

from autorep_fx.cost.packing import Packing, ciphertexts
from autorep_fx.cost.profile import load_profile

# Rows, terms, columns; messages and bytes of both parties, measured one by one at 64 bits.
MEASURED = [
    ((1, 1, 1), 4, 624_514), ((1, 64, 10), 4, 624_946), ((8, 64, 10), 4, 627_358), ((100, 9, 4), 4, 637_896),
    ((1, 256, 120), 4, 878_723), ((1, 512, 64), 4, 878_661), ((576, 25, 6), 6, 1_248_663),
    ((64, 150, 16), 6, 1_248_598), ((784, 9, 8), 6, 1_248_641), ((1024, 27, 16), 8, 1_757_173),
    ((1, 400, 120), 6, 1_248_579), ((1, 120, 84), 6, 882_221), ((196, 72, 16), 6, 1_248_690),
]  # fmt: skip


def _packing() -> Packing:
    packing = load_profile().protocol("cheetah").operations["matmul"].packing
    assert packing is not None
    return packing


@pytest.mark.parametrize(("sizes", "messages", "sent"), MEASURED, ids=[str(sizes) for sizes, _, _ in MEASURED])
def test_ciphertexts_are_those_that_were_sent(sizes: tuple[int, int, int], messages: int, sent: int) -> None:
    """Messages exactly; bytes within 0.2 %, by which compression varies."""
    packing = _packing()
    assert 2 * packing.party_messages(*sizes) == messages
    assert 2 * packing.party_bytes(*sizes) == pytest.approx(sent, rel=2e-3)


def test_a_result_of_one_block_is_not_packed() -> None:
    single, packed = ciphertexts(8, 64, 10, 8192), ciphertexts(1024, 27, 16, 8192)
    assert (single.requests, single.responses, single.packs) == (1, 1, False)
    assert (packed.requests, packed.responses, packed.packs, packed.blocks) == (2, 2, True, 32)
    assert _packing().rotations(8, 64, 10) == 0
    assert _packing().rotations(1024, 27, 16) == 2 * 16


def test_a_transposed_product_takes_as_much() -> None:
    """Either factor may be the one that is encrypted: a single row with many columns is the mirror of the reverse."""
    assert ciphertexts(1, 400, 120, 8192).requests == ciphertexts(120, 400, 1, 8192).requests
