"""The grammar of budgets, and what a budget allows in a given model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autorep_fx.amounts import read_amount, write_amount
from autorep_fx.budget import Budget
from autorep_fx.cost.resolve import resolve
from autorep_fx.errors import BudgetError, BudgetInfeasibleError
from autorep_fx.sites import Site

SPELLINGS = [
    (12900, "comparisons", 12900),
    (0, "comparisons", 0),
    (1, "comparisons", 1),
    ("12900", "comparisons", 12900),
    ("12,900", "comparisons", 12900),
    ("12_900", "comparisons", 12900),
    ("12.9K", "comparisons", 12900),
    ("12.9k", "comparisons", 12900),
    (" 12.9 K ", "comparisons", 12900),
    (".5k", "comparisons", 500),
    ("1.5M", "comparisons", 1_500_000),
    ("0", "comparisons", 0),
    ("5%", "fraction", 0.05),
    ("5 %", "fraction", 0.05),
    ("0.1%", "fraction", 0.001),
    ("100%", "fraction", 1.0),
    ("0%", "fraction", 0.0),
    (0.05, "fraction", 0.05),
    (1.0, "fraction", 1.0),
    (0.0, "fraction", 0.0),
    ("0.05", "fraction", 0.05),
    ("1.0", "fraction", 1.0),
    ("1e-3", "fraction", 0.001),
    ("1E-3", "fraction", 0.001),
    (1e-3, "fraction", 0.001),
    (np.int64(12900), "comparisons", 12900),
    (np.float64(0.05), "fraction", 0.05),
    ({"comparisons": 12900}, "comparisons", 12900),
    ({"comparisons": "12.9K"}, "comparisons", 12900),
    ({"fraction": 0.05}, "fraction", 0.05),
    ({"fraction": "5%"}, "fraction", 0.05),
    ({"fraction": "1e-3"}, "fraction", 0.001),
    ({"fraction": 1}, "fraction", 1.0),
    ({"fraction": "1"}, "fraction", 1.0),
    ({"fraction": 0}, "fraction", 0.0),
]


@pytest.mark.parametrize(("value", "kind", "number"), SPELLINGS, ids=[repr(case[0]) for case in SPELLINGS])
def test_every_spelling_is_read(value: object, kind: str, number: float) -> None:
    """The kind, the exact number, and its type: int for comparisons, float for fractions."""
    budget = Budget.parse(value)
    assert (budget.kind, budget.value) == (kind, number)
    assert type(budget.value) is (int if kind == "comparisons" else float)


REFUSED = [
    True, False, 12900.0, 1.5, -1, -0.1, math.nan, math.inf, -math.inf, None, [5], b"5%", 5j,
    "", "a lot", "nan", "inf", "5%%", "5K%", "1 2", "--5", "K", "%", "12900.0", "1e4", "1e999", "1e999K",
    "9" * 40, 10**40,
    "1e999999999K", np.bool_(True), np.int64(-1), "-5",
    "-5%", "101%", "1.2345K", "1.5", "0.05K9",
    {}, {"comparisons": 1, "fraction": 0.5}, {"bytes": 3}, {"comparisons": 12900.0}, {"comparisons": True},
    {"comparisons": -1}, {"comparisons": "5%"}, {"comparisons": None}, {"fraction": 1.5}, {"fraction": "7"},
    {"fraction": False}, {"fraction": "12.9K"}, {"fraction": math.nan},
]  # fmt: skip


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_everything_else_is_refused_with_both_spellings(value: object) -> None:
    """The error shows what was received and suggests a number and a percentage."""
    with pytest.raises(BudgetError) as caught:
        Budget.parse(value)
    message = str(caught.value)
    assert "12900" in message
    assert "'5%'" in message
    assert caught.value.received is not None


@pytest.mark.parametrize("make", [lambda: Budget.comparisons(True), lambda: Budget.comparisons(5.0),
                                  lambda: Budget.fraction(2), lambda: Budget.fraction(True),
                                  lambda: Budget("bytes", 1)])  # fmt: skip
def test_the_constructors_check_too(make: object) -> None:
    """No way to make a budget goes around the checks."""
    with pytest.raises(BudgetError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("value", "hints"),
    [(12900.0, ["12900"]), ("12900.0", ["12900"]), (5.0, ["write 5", "'5%'"]), ("2.5", ["'2.5%'"])],
)
def test_a_float_above_one_is_answered_with_what_may_have_been_meant(value: object, hints: list[str]) -> None:
    """12900.0 was probably a count and 5.0 a count or a percentage: the message spells both."""
    with pytest.raises(BudgetError) as caught:
        Budget.parse(value)
    hint = str(caught.value).partition("If you meant")[2]
    assert hint
    assert all(text in hint for text in hints)


def test_an_old_budget_passes_through() -> None:
    """Parsing a budget gives that budget."""
    budget = Budget.fraction(0.25)
    assert Budget.parse(budget) is budget


@given(st.one_of(st.integers(0, 10**15).map(Budget.comparisons), st.floats(0, 1).map(Budget.fraction)))
def test_saved_form_reads_back(budget: Budget) -> None:
    """parse(to_json()) is the identity, through JSON text as well, for every budget."""
    assert Budget.parse(budget.to_json()) == budget
    assert Budget.parse(json.loads(json.dumps(budget.to_json()))) == budget


@given(st.integers(0, 10**9))
def test_the_spellings_of_a_number_agree(number: int) -> None:
    """An int, its digits, digits with separators, and thousands with a K are one budget."""
    spellings = [number, str(number), f"{number:,}", f"{number:_}", f"{number // 1000}.{number % 1000:03}K"]
    assert {Budget.parse(text) for text in spellings} == {Budget.comparisons(number)}


@given(st.integers(0, 1000))
def test_the_spellings_of_a_fraction_agree(per_mille: int) -> None:
    """A percentage and the decimal fraction are one budget."""
    assert Budget.parse(f"{per_mille / 10}%") == Budget.parse(f"{per_mille / 1000:.4f}")


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget.comparisons(12900), "12,900 comparisons"),
        (Budget.fraction(0.05), "5% of the gateable comparisons"),
        (Budget.fraction(0.001), "0.1% of the gateable comparisons"),
    ],
)
def test_text(budget: Budget, text: str) -> None:
    """A budget prints as a person would write it."""
    assert str(budget) == text


SITES = (
    Site("relu", "relu", (4, 5, 5), 1),
    Site("clip", "clip", (50,), 2),
    Site("pool", "max_pool2d", (30,), 1, reason="max_pool2d is not an activation that gates replace"),
)


def test_a_fraction_is_of_the_gateable_comparisons() -> None:
    """200 are gateable and 30 fixed: 5 % allows 10, on top of the 30."""
    allowance = resolve(Budget.parse("5%"), SITES)
    assert (allowance.gateable, allowance.fixed, allowance.allowed, allowance.total) == (200, 30, 10, 40)


def test_a_number_is_of_the_total() -> None:
    """A budget of 40 leaves 10 once the 30 fixed ones are paid; the floor itself leaves none."""
    assert resolve(Budget.comparisons(40), SITES).allowed == 10
    assert resolve(Budget.comparisons(30), SITES).allowed == 0
    assert resolve(Budget.comparisons(230), SITES).allowed == 200


def test_below_the_floor_names_the_sites_and_the_remedy() -> None:
    """The floor by site with its reason, the smallest number that works, and what to change in the model."""
    with pytest.raises(BudgetInfeasibleError) as caught:
        resolve(Budget.comparisons(29), SITES)
    message = str(caught.value)
    assert "pool (max_pool2d): 30, max_pool2d is not an activation" in message
    assert "at least 30" in message
    assert "substitute: {max_pool2d: avg_pool2d}" in message
    assert "gates: {pools: true}" in message
    assert "relu (" not in message


def test_above_the_total_is_refused() -> None:
    """One more than the model spends is no budget, and the message says the total."""
    with pytest.raises(BudgetError, match="230") as caught:
        resolve(Budget.comparisons(231), SITES)
    assert not isinstance(caught.value, BudgetInfeasibleError)
    assert "%" in str(caught.value)


@pytest.mark.parametrize("percent", range(101))
def test_percentages_are_decimal(percent: int) -> None:
    """Whole percents of 100 are that number: 0.29 · 100 in binary floating point would give 28."""
    site = Site("relu", "relu", (100,), 1)
    assert resolve(Budget.parse(f"{percent}%"), [site]).allowed == percent
    assert resolve(Budget.parse(percent / 100), [site]).allowed == percent


def test_zero_is_none_in_both_spellings() -> None:
    """Without fixed comparisons, 0 and 0.0 both allow none."""
    assert resolve(Budget.parse(0), SITES[:1]).allowed == 0
    assert resolve(Budget.parse(0.0), SITES[:1]).allowed == 0


COSTS = [
    ("40MB@semi2k", Budget("bytes", 40_000_000, "semi2k")),
    (" 1.5 MiB @ aby3 ", Budget("bytes", 1_572_864, "aby3")),
    ("12,345 bytes@aby3", Budget("bytes", 12_345, "aby3")),
    ("170messages@aby3", Budget("messages", 170, "aby3")),
    ("2s@semi2k/wan", Budget("seconds", 2.0, "semi2k", "wan")),
    ("250ms@semi2k/100Mbps,40ms", Budget("seconds", 0.25, "semi2k", "100Mbps,40ms")),
    ({"bytes": "40MB", "protocol": "semi2k"}, Budget("bytes", 40_000_000, "semi2k")),
    ({"messages": 170, "protocol": "aby3"}, Budget("messages", 170, "aby3")),
    ({"seconds": 2, "protocol": "semi2k", "network": "wan"}, Budget("seconds", 2.0, "semi2k", "wan")),
    ({"bytes": 5, "protocol": "delphi-gc", "allow_unverified": True}, Budget("bytes", 5, "delphi-gc", None, True)),
]


@pytest.mark.parametrize(("value", "budget"), COSTS, ids=[str(value) for value, _ in COSTS])
def test_costs_are_read_and_come_back(value: object, budget: Budget) -> None:
    """Text and mappings give the budget; its JSON form and its short form give it again."""
    read = Budget.parse(value)
    assert read == budget
    assert type(read.value) is type(budget.value)
    assert Budget.parse(json.loads(json.dumps(read.to_json()))) == budget
    if not budget.allow_unverified:
        assert Budget.parse(read.short) == budget


def test_the_constructors_of_costs_say_the_same() -> None:
    """As in the text, amounts as numbers or with a unit."""
    assert Budget.bytes("40MB", protocol="semi2k") == Budget.bytes(40_000_000, protocol="semi2k")
    assert Budget.bytes("40MB", protocol="semi2k") == Budget.parse("40MB@semi2k")
    assert Budget.messages(170, protocol="aby3") == Budget.parse("170messages@aby3")
    assert Budget.seconds(2, protocol="semi2k", network="wan") == Budget.parse("2s@semi2k/wan")
    assert Budget.seconds("250ms", protocol="semi2k", network="lan").value == 0.25


@pytest.mark.parametrize(
    "value",
    ["40MB", "40MB@", "40MB@semi2k/wan", "2s@semi2k", "1.5bytes@semi2k", "-1MB@semi2k", "5%@semi2k", "40@semi2k",
     "4 furlongs@semi2k", "1e5000MB@semi2k", "1e9999999MB@semi2k", {"bytes": 1, "protocol": 5},
     {"seconds": 1, "protocol": "semi2k", "network": 7}, {"bytes": 1},
     {"bytes": 1, "messages": 2, "protocol": "semi2k"},
     {"bytes": 1.5, "protocol": "semi2k"}, {"bytes": True, "protocol": "semi2k"}, {"bytes": "2s", "protocol": "semi2k"},
     {"bytes": 1, "protocol": "semi2k", "allow_unverified": "yes"}, {"bytes": 1, "protocol": "semi2k", "for": "me"}],
    ids=str,
)  # fmt: skip
def test_what_is_no_cost_is_refused(value: object) -> None:
    """Without a protocol, with a network where none counts, with parts of a byte: told, with the spellings."""
    with pytest.raises(BudgetError, match=r"To fix"):
        Budget.parse(value)


@given(st.sampled_from(["bytes", "messages", "seconds"]), st.integers(0, 2**53), st.floats(0, 1e9))
def test_amounts_are_written_exactly(kind: str, whole: int, seconds: float) -> None:
    """What a refusal names can be asked for."""
    value = seconds if kind == "seconds" else whole
    if "e" not in repr(value) or kind != "seconds":
        assert read_amount(write_amount(kind, value)) == (kind, value)
