"""Reserves, pieces and computation of single operations."""

from __future__ import annotations

import pytest

from autorep_fx.cost.charge import Reserves, charge
from autorep_fx.cost.profile import Compute, OperationCost, Reserve, Split
from autorep_fx.cost.rules import Primitive

RESERVE = Reserve(
    elements=100, bytes=5000, messages=3, serial=2, left=40, direct_from=1000, direct_elements=250, direct_bytes=700,
    direct_messages=4,
)  # fmt: skip
DRAWS = OperationCost(
    bytes=2, messages=1, messages_total=2, reserve=RESERVE, status="measured", source="a test",
    seconds=Compute(element=1e-3, batch=0.5, status="measured", source="a test"),
)  # fmt: skip


def test_a_batch_is_made_when_the_reserve_runs_out() -> None:
    """40 are left of the set-up: 30, then 30 more, for which a batch of 100 is made, then 150, which takes two."""
    reserves: Reserves = {}
    sent = [charge(Primitive("product", n), DRAWS, 2, reserves) for n in (30, 30, 80, 150)]
    assert [one.bytes for one in sent] == [60, 60 + 5000, 160, 300 + 2 * 5000]
    assert [one.messages for one in sent] == [1, 3, 1, 5]
    assert [one.messages_total for one in sent] == [2, 2 + 3, 2, 2 + 6]
    assert [one.seconds for one in sent] == pytest.approx([0.03, 0.53, 0.08, 1.15])
    assert reserves == {("product", 0): 40 - 30 + 100 - 30 - 80 + 200 - 150}


def test_each_piece_of_a_call_has_a_reserve_of_its_own() -> None:
    """Two pieces of 30 draw 30 of 40 each, then each makes a batch; a call of one piece draws from the first."""
    split = DRAWS.model_copy(update={"split": Split(elements=30, most=2)})
    reserves: Reserves = {}
    sent = [charge(Primitive("product", n), split, 2, reserves) for n in (60, 60, 20)]
    assert [one.bytes for one in sent] == [120, 120 + 2 * 5000, 40]
    assert [one.messages_total for one in sent] == [4, 4 + 2 * 3, 2]
    assert reserves == {("product", 0): 40 - 30 + 100 - 30 - 20, ("product", 1): 40 - 30 + 100 - 30}


def test_the_mean_of_many_queries_is_the_share_of_a_batch() -> None:
    reserves: Reserves = {}
    mean = charge(Primitive("product", 30), DRAWS, 2)
    many = [charge(Primitive("product", 30), DRAWS, 2, reserves) for _ in range(1000)]
    assert sum(one.bytes for one in many) / 1000 == pytest.approx(mean.bytes, rel=1e-2)
    assert mean.bytes == 60 + 0.3 * 5000


def test_large_calls_draw_nothing() -> None:
    """Two halves of 600 elements, each of three pieces."""
    reserves: Reserves = {}
    found = charge(Primitive("product", 1200), DRAWS, 2, reserves)
    assert (found.bytes, found.messages, found.messages_total, reserves) == (6 * 700, 2, 6 * 4, {})


def test_pieces_send_their_own_messages_at_the_same_time() -> None:
    cost = OperationCost(
        bytes=1, call=16, messages=7, messages_total=14, split=Split(elements=10, most=3), status="measured", source="t"
    )
    for elements, pieces in ((10, 1), (11, 2), (500, 3)):
        found = charge(Primitive("compare", elements), cost, 2)
        assert (found.bytes, found.messages, found.messages_total) == (elements + 16, 7, 14 * pieces)
    stacked = charge(Primitive("compare", 40, calls=4), cost, 2)
    assert (stacked.bytes, stacked.messages, stacked.messages_total) == (40 + 4 * 16, 28, 4 * 14)


def test_what_nobody_counted_stays_unknown() -> None:
    cost = OperationCost(bytes=1, messages=None, status="unverified", source="recalled")
    found = charge(Primitive("compare", 5), cost, 2)
    assert (found.bytes, found.messages, found.messages_total, found.seconds) == (5, None, None, None)
