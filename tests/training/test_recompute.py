"""Inputs of gates that are computed again in the backward pass: the same numbers, less memory, the same graph after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
from autorep_fx.models_zoo import create
from autorep_fx.training.recompute import recomputing

X = torch.randn(16, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 10


def _gated(model: nn.Module) -> autorep_fx.GatedModel:
    """With about a third kept, in float64."""
    gated = autorep_fx.prepare(model, "30%", example_inputs=X, config={"verification": "off"})
    generator = torch.Generator().manual_seed(1)
    for gate in gated.gates.values():
        gate.kept.copy_(torch.rand(gate.kept.shape, generator=generator) < 0.3)
    return gated.train()


def _state_after_a_step(gated: autorep_fx.GatedModel) -> dict[str, Tensor]:
    F.cross_entropy(gated(X), Y).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in gated.named_parameters()}
    return {**gradients, **dict(gated.named_buffers())}  # type: ignore[dict-item]


@pytest.fixture
def gated() -> autorep_fx.GatedModel:
    torch.manual_seed(0)
    return _gated(create("digits_resnet").double())


def test_gradients_and_running_statistics_are_those_of_the_plain_graph(gated: autorep_fx.GatedModel) -> None:
    """To 1e-12 in float64, over norms alone, norms before sums, and two norms that meet in a sum."""
    plain = _state_after_a_step(copy.deepcopy(gated))
    with recomputing(gated.network) as count:
        assert count == len(gated.gates) == 7
        merged = _state_after_a_step(gated)
    assert plain.keys() == merged.keys()
    for name, value in plain.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def test_less_is_kept_for_the_backward_pass(gated: autorep_fx.GatedModel) -> None:
    """The inputs of the gates are not held; two shortcuts are instead, whose norms meet others in a sum."""

    def held() -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = F.cross_entropy(gated(X), Y)
        total = sum(storages.values())
        loss.backward()
        return total

    plain = held()
    with recomputing(gated.network):
        saved = plain - held()
    inputs = sum(8 * len(X) * gate.site.elements for gate in gated.gates.values())
    assert 0.8 * inputs < saved < inputs


def test_evaluation_and_the_graph_afterwards_are_untouched(gated: autorep_fx.GatedModel) -> None:
    """Eval mode within gives the plain outputs; afterwards the code is what it was, in the mode of now."""
    code = gated.network.code
    expected = copy.deepcopy(gated).eval()(X)
    with recomputing(gated.network):
        gated.eval()
        assert torch.equal(gated(X), expected)
        gated.train()
    assert gated.network.code == code
    assert gated.network.training
    gated.eval()
    assert torch.equal(gated(X), expected)


class _Broadcast(nn.Module):
    """A sum whose other term has another shape, and a norm that something else uses too: neither is merged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        shared = self.other(z)
        return (F.relu(self.norm(z) + self.scale) + F.relu(shared) + shared).mean((2, 3))


def test_what_does_not_fit_is_left_alone() -> None:
    """Gates after a broadcast sum or after a norm with two uses stay calls of their own."""
    torch.manual_seed(0)
    gated = _gated(_Broadcast().double())
    with recomputing(gated.network) as count:
        assert count == 0


def test_a_training_with_it_comes_to_the_same_plan() -> None:
    """``execution: {recompute: true}`` changes memory, not the result."""
    torch.manual_seed(0)
    model = create("digits_resnet")
    data = [(X[:8].float(), Y[:8]), (X[8:].float(), Y[8:])]
    results = []
    for recompute in (False, True):
        config: dict[str, Any] = {
            "training": {"epochs": 3}, "finetune": {"epochs": 1}, "execution": {"recompute": recompute}
        }  # fmt: skip
        results.append(autorep_fx.transform(model, "10%", data=data, config=config))
    plain, merged = results
    for name, value in plain.weights.items():
        torch.testing.assert_close(merged.weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
