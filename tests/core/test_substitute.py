"""Substitutions before gating: activations by other ones, max pooling by average pooling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
import independent_counter
from autorep_fx.errors import ConfigError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """SiLU as a module and as a function, ReLU6, and three max pools, one of them dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.clip = nn.SiLU(), nn.ReLU6()
        self.pool, self.wide = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1, dilation=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.conv(x)))
        x = self.wide(self.clip(F.silu(self.second(x))))
        return self.head(F.adaptive_max_pool2d(x, 1).flatten(1))

    def expected(self, x: Tensor) -> Tensor:
        """What it computes with SiLU → ReLU, ReLU6 → ReLU and averages where they exist."""
        x = F.avg_pool2d(F.relu(self.conv(x)), 3, 2, 1, count_include_pad=False)
        x = self.wide(F.relu(F.relu(self.second(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def model() -> Net:
    """The network with fixed weights."""
    torch.manual_seed(0)
    return Net().eval()


RULES = {
    "silu": "relu", "class:ReLU6": "relu", "pool.max_pool2d": "avg_pool2d",
    "adaptive_max_pool2d": "adaptive_avg_pool2d",
}  # fmt: skip


def test_what_is_substituted_is_computed(model: Net, tmp_path: Path) -> None:
    """All kept: equal to the network written with the substitutes, in torch and in the exported file."""
    result = autorep_fx.transform(model, "100%", example_inputs=X, config={"substitute": RULES})
    assert torch.allclose(result(X), model.expected(X), atol=1e-6)
    result.export(tmp_path / "model.onnx")
    assert independent_counter.count(tmp_path / "model.onnx") == result.comparisons
    found = autorep_fx.inspect(model, X)
    given = found.gateable + found.fixed
    assert result.notes[:6] == (
        "act: silu became relu",
        "pool.max_pool2d: max_pool2d became avg_pool2d",
        "silu: silu became relu",
        "clip: clip became relu",
        "adaptive_max_pool2d: adaptive_max_pool2d became adaptive_avg_pool2d",
        f"the model as given compares {given:,} times, with these substitutions {result.comparisons:,}",
    )


def test_sites_keep_their_names_and_pools_go(model: Net) -> None:
    """The site that was called silu still is, and the ReLU that follows it now is merged with it."""
    result = autorep_fx.transform(model, "100%", example_inputs=X, config={"substitute": RULES})
    assert [(s.name, s.kind, s.comparisons) for s in result.plan.sites] == [
        ("act", "relu", 256), ("silu", "relu", 64)
    ]  # fmt: skip
    assert [s.name for s in result.plan.fixed] == ["wide.max_pool2d"]


def test_a_saved_result_loads_into_the_untouched_model(model: Net, tmp_path: Path) -> None:
    """The settings that are saved beside the plan carry the substitutions."""
    result = autorep_fx.transform(model, "20%", example_inputs=X, config={"substitute": RULES}, out_dir=tmp_path)
    torch.manual_seed(1)
    again = autorep_fx.load(tmp_path, Net(), example_inputs=X)
    assert torch.allclose(again(X), result(X), atol=1e-6)


REFUSED = {
    "'silo' matches no site. Did you mean 'silu'": {"silo": "relu"},
    "'rellu' for 'silu'. Did you mean 'relu'": {"silu": "rellu"},
    "'silu' for avg_pool2d: the sites that match cannot become it: silu": {"silu": "avg_pool2d"},
    "'silu' for silu: the sites that match are so already": {"silu": "silu"},
    "dilated by": {"wide.max_pool2d": "avg_pool2d"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_substituted_is_refused(model: Net, reason: str) -> None:
    """With the reason."""
    with pytest.raises(ConfigError) as caught:
        autorep_fx.transform(model, "100%", example_inputs=X, config={"substitute": REFUSED[reason]})
    assert reason in str(caught.value)


def test_the_teacher_is_the_untouched_model(model: Net) -> None:
    """With distillation alone the substituted network is drawn to the outputs of the original."""
    data = [(X, model(X).detach().argmax(1))] * 8
    config = {
        "substitute": {"silu": "relu"}, "training": {"epochs": 0, "distillation": 1.0},
        "finetune": {"epochs": 6, "lr": 1e-2},
    }  # fmt: skip

    def distance(result: autorep_fx.Compiled) -> float:
        with torch.no_grad():
            return float((result(X) - model(X)).square().mean())

    untrained = autorep_fx.transform(model, "100%", example_inputs=X, config={"substitute": {"silu": "relu"}})
    trained = autorep_fx.transform(
        model, "100%", data=data, config=config, loss=lambda outputs, targets: outputs.sum() * 0
    )
    assert distance(trained) < 0.5 * distance(untrained)
