"""Settings of single sites: by name, glob, kind and module class; modes, granularity, degree and own budgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import BudgetError, BudgetInfeasibleError, ConfigError
from autorep_fx.selectors import matching

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A convolution with an activation of its own."""

    def __init__(self, inputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4, 3, padding=1)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Gate(Block):
    """A block of another class."""


class Net(nn.Module):
    """Sites ``stem.act`` (silu), ``body.act`` (relu), ``gate.act`` (sigmoid) and ``relu`` (relu): 256 each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.gate = Block(3, nn.SiLU()), Block(4, nn.ReLU()), Gate(4, nn.Sigmoid())
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.head(self.relu(x * self.gate(x) - 0.1).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The network with fixed weights."""
    torch.manual_seed(0)
    return Net().eval()


def compiled(model: nn.Module, budget: Any, **sites: Any) -> autorep_fx.Compiled:
    """Compiled without data."""
    return autorep_fx.transform(model, budget, example_inputs=X, config={"sites": sites.pop("sites", sites)})


def kept(result: autorep_fx.Compiled) -> dict[str, int]:
    """Kept elements by gated site."""
    return {site.name: site.kept_elements for site in result.plan.sites}


SELECTED = {
    "stem.act": ["stem.act"],
    "*.act": ["stem.act", "body.act", "gate.act"],
    "silu": ["stem.act"],
    "relu": ["relu"],  # a name before a kind
    "kind:relu": ["body.act", "relu"],
    "name:relu": ["relu"],
    "Gate": ["gate.act"],
    "class:Block": ["stem.act", "body.act"],
    "class:*Bl?ck": ["stem.act", "body.act"],
    "class:torch.nn.modules.activation.SiLU": ["stem.act"],
    "kind:s*": ["stem.act", "gate.act"],
    "kind:tanh": [],
    "nothing": [],
}


@pytest.mark.parametrize("pattern", SELECTED)
def test_a_pattern_selects_by_name_glob_kind_or_class(model: nn.Module, pattern: str) -> None:
    """Exactly these sites, in execution order."""
    sites = autorep_fx.inspect(model, X).sites
    assert [site.name for site in matching(pattern, sites)] == SELECTED[pattern]


def test_first_decides_what_a_pattern_is_tried_as(model: nn.Module) -> None:
    """A substitution means kinds, where a name is the same word."""
    sites = autorep_fx.inspect(model, X).sites
    assert [site.name for site in matching("relu", sites, first="kind")] == ["body.act", "relu"]


def test_keep_spends_the_budget_and_ignore_does_not(model: nn.Module) -> None:
    """keep: within the gateable; ignore: on top, as a fixed site; replace: nothing left."""
    result = compiled(model, "50%", sites={"kind:relu": {"mode": "keep"}})
    assert kept(result) == {"stem.act": 0, "body.act": 256, "gate.act": 0, "relu": 256}
    result = compiled(model, "50%", sites={"class:Gate": {"mode": "ignore"}, "relu": {"mode": "replace"}})
    assert kept(result)["relu"] == 0
    assert sum(kept(result).values()) == 3 * 256 // 2
    assert result.plan.fixed_comparisons == 256


def test_own_budgets_are_met_site_by_site(model: nn.Module) -> None:
    """A fraction of each selected site, a number for one; the rest goes where the scores say; the sum is exact."""
    result = compiled(model, 500, sites={"kind:relu": {"budget": "25%"}, "gate.act": {"budget": 7}})
    assert kept(result) == {"stem.act": 256, "body.act": 64, "gate.act": 7, "relu": 64}
    assert result.unspent == 500 - 256 - 64 - 7 - 64
    result = compiled(model, 300, sites={"kind:relu": {"budget": "25%"}, "gate.act": {"budget": 7}})
    assert kept(result) == {"stem.act": 300 - 135, "body.act": 64, "gate.act": 7, "relu": 64}


def test_what_an_own_budget_cannot_spend_goes_to_the_others(model: nn.Module) -> None:
    """Whole channels of 64 under a budget of 100: 36 of them are free for the other sites."""
    result = compiled(model, 200, sites={"body.act": {"budget": 100, "granularity": "channel"}})
    assert kept(result)["body.act"] == 64
    assert sum(kept(result).values()) == 200


def test_own_budgets_hold_through_training(model: nn.Module) -> None:
    """Trained gates: during training the schedule lowers each pot by itself, and the plan is exact."""
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 3, (8,))) for _ in range(4)]
    config = {
        "sites": {"body.act": {"budget": "50%"}, "relu": {"mode": "keep"}, "stem.act": {"budget": 0}},
        "training": {"epochs": 2}, "finetune": {"epochs": 1},
    }  # fmt: skip
    result = autorep_fx.transform(model, 400, data=data, config=config)
    assert kept(result) == {"stem.act": 0, "body.act": 128, "gate.act": 16, "relu": 256}


def test_granularity_and_degree_by_class(model: nn.Module) -> None:
    """They reach the plan at the selected sites only; a later entry wins."""
    result = compiled(model, "50%", sites={"class:Block": {"granularity": "channel"}, "body.act": {"degree": 1}})
    assert [(s.granularity, s.degree) for s in result.plan.sites] == [
        ("channel", 2), ("channel", 1), ("element", 2), ("element", 2)
    ]  # fmt: skip


def test_a_pattern_without_a_match_names_the_nearest(model: nn.Module) -> None:
    """All of them at once."""
    with pytest.raises(ConfigError) as caught:
        compiled(model, "50%", sites={"steam.act": {"degree": 1}, "kind:sillu": {"degree": 1}})
    assert "'steam.act' matches no site. Did you mean 'stem.act'" in str(caught.value)
    assert "'kind:sillu' matches no site." in str(caught.value)


def test_shares_that_do_not_fit_are_refused(model: nn.Module) -> None:
    """Kept sites above the budget, an own budget above the site, an own budget without gates."""
    with pytest.raises(BudgetInfeasibleError, match="are to keep 512 comparisons, the budget allows 511"):
        compiled(model, 511, sites={"kind:relu": {"mode": "keep"}})
    with pytest.raises(BudgetError, match="above the 256"):
        compiled(model, "50%", sites={"relu": {"budget": 257}})
    with pytest.raises(ConfigError, match="mode 'keep'"):
        compiled(model, "50%", sites={"relu": {"budget": 3, "mode": "keep"}})


class _Twice(nn.Module):
    """Two modules compare one value, a third another one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu_a, self.relu_b, self.relu_c = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.relu_c(self.second(self.relu_a(y))) + self.relu_b(y)


@pytest.mark.parametrize("key", ["relu_b", "relu_a", "name:relu_b", "*_b"])
def test_merged_calls_go_by_the_names_of_all(key: str) -> None:
    """The second of two equal calls is gone; its name still means the site that stands for both."""
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert "also relu_b" in str(autorep_fx.inspect(_Twice(), x))
    compiled = autorep_fx.transform(_Twice(), "40%", example_inputs=x, config={"sites": {key: {"mode": "replace"}}})
    assert {s.name: s.comparisons for s in compiled.plan.sites}["relu_a"] == 0
    changed = autorep_fx.transform(_Twice(), "40%", example_inputs=x, config={"substitute": {key: "gelu"}})
    assert [s.kind for s in changed.plan.sites] == ["gelu", "relu"]
