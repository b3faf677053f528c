"""How training runs: what of the execution changes nothing but rounding, and what is refused."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.compiled import Compiled
from autorep_fx.config import ExecutionConfig
from autorep_fx.config_io import parse_config
from autorep_fx.errors import ConfigError, DeviceError
from autorep_fx.gates import GatedActivation
from nets import batches, seeded, trained_norms

CONFIG: dict[str, Any] = {
    "training": {"epochs": 2}, "finetune": {"epochs": 1}, "calibration": {"samples": 32},
    "outputs": {"onnx": False, "report": False},
}  # fmt: skip
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
# torch's compiler imports parts of torch that warn about themselves, and looks at gradients of tensors that have none.
ignores_torchs_own = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Small(nn.Module):
    """One gated site, without a norm: little to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, stride=2), nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


def _run(model: nn.Module, **execution: Any) -> Compiled:
    return autorep_fx.transform(model, "10%", data=batches(), config={**CONFIG, "execution": execution}, seed=0)


def _small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def _assert_close(one: Compiled, other: Compiled) -> None:
    for a, b in zip(one.plan.sites, other.plan.sites, strict=True):
        assert (a.kept == b.kept).all()
    assert [p.loss for p in one.history] == pytest.approx([p.loss for p in other.history], rel=1e-3)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[GatedActivation, Tensor, bool]]:
    """What every gate was called with in training: the input, and whether deterministic algorithms were on."""
    calls: list[tuple[GatedActivation, Tensor, bool]] = []
    original = GatedActivation.forward

    def forward(self: GatedActivation, x: Tensor, *parameters: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and x.dim() == 4:
            calls.append((self, x.detach(), torch.are_deterministic_algorithms_enabled()))
        return original(self, x, *parameters)

    monkeypatch.setattr(GatedActivation, "forward", forward)
    return calls


def test_channels_last_reaches_the_gates_and_keeps_the_result(seen: list[Any]) -> None:
    """Every gate on images gets them in that layout."""
    model = trained_norms(seeded(), batches()[0][0])
    found = _run(model, channels_last=True)
    assert seen
    assert all(x.is_contiguous(memory_format=torch.channels_last) for _, x, _ in seen)
    _assert_close(found, _run(model))


def test_deterministic_algorithms_hold_for_the_run_alone(seen: list[Any]) -> None:
    """They are on while it trains, and as they were afterwards."""
    _run(_small(), deterministic=True)
    assert seen
    assert all(on for *_, on in seen)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        _run(_small(), deterministic=True)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_bf16_computes_in_half_precision_and_trains_in_float32(seen: list[Any]) -> None:
    """Gates see bfloat16; weights and plan come out in float32, near those of full precision."""
    found = _run(_small(), precision="bf16")
    assert {x.dtype for _, x, _ in seen} == {torch.bfloat16}
    assert all(value.dtype != torch.bfloat16 for value in found.weights.values())
    assert found.history[-1].loss == pytest.approx(_run(_small()).history[-1].loss, rel=0.05)


def test_float16_is_for_gpus() -> None:
    """Told before any work."""
    with pytest.raises(DeviceError, match="bf16 or 32"):
        autorep_fx.transform(
            _small(), "10%", data=batches(), config={**CONFIG, "execution": {"precision": "16"}}, device="cpu"
        )


@needs_compiler
@ignores_torchs_own
@pytest.mark.parametrize("option", ["fuse", "compile"])
def test_compiled_code_trains_to_the_same_units(option: str) -> None:
    """The gates alone, or the whole model and its teacher."""
    _assert_close(_run(_small(), **{option: True}), _run(_small()))


def test_a_short_run_compiles_nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset, fuse leaves the gates of a short run alone."""
    monkeypatch.setattr(torch, "compile", lambda *_: pytest.fail("compiled"))
    _run(_small())


def test_sync_norms_of_a_compiled_model_are_refused() -> None:
    """With what to set instead."""
    with pytest.raises(ConfigError, match="fuse: true"):
        parse_config({"execution": {"compile": True, "sync_norms": True}})
    assert ExecutionConfig(compile=True).sync_norms is False
