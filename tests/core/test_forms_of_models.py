"""Dtypes, tied weights and outputs of named classes: what users' own models bring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import ConfigError

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Found:
    """Outputs in a dataclass, one of which is another."""

    logits: Tensor
    inner: Inner


@dataclasses.dataclass
class Inner:
    """Features."""

    features: Tensor


class Named(NamedTuple):
    """Outputs in a named tuple."""

    logits: Tensor
    features: Tensor


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor | Found | Named:
        features = torch.relu(self.first(x))
        logits = self.second(features)
        if self.form == "dataclass":
            return Found(logits, Inner(features))
        return Named(logits, features) if self.form == "named tuple" else logits


def model(form: str = "tensor") -> Tied:
    """With fixed weights, in eval mode."""
    torch.manual_seed(0)
    return Tied(form).eval()


@pytest.mark.parametrize("form", ["dataclass", "named tuple"])
def test_outputs_keep_their_class(form: str, tmp_path: Path) -> None:
    """The compiled module returns what the model returns, nested; the file has both outputs."""
    original = model(form)
    compiled = autorep_fx.transform(original, "100%", example_inputs=X)
    outputs, expected = compiled(X), original(X)
    assert type(outputs) is type(expected)
    features = outputs.inner.features if form == "dataclass" else outputs.features
    assert torch.equal(features, torch.relu(original.first(X)))
    assert torch.allclose(outputs.logits, expected.logits, atol=1e-6)
    compiled.export(tmp_path / "model.onnx")
    assert len(autorep_fx.runtime.Session(tmp_path / "model.onnx")(X.numpy())) == 2


def test_tied_weights_stay_tied() -> None:
    """Captured, trained and saved they are one tensor, as in the model."""
    captured = autorep_fx.capture(model(), X)
    assert captured.first.weight is captured.second.weight
    data = [(X, torch.tensor([0, 1, 2, 3]))] * 4
    compiled = autorep_fx.transform(model(), "50%", data=data, config={"training": {"epochs": 2}})
    assert torch.equal(compiled.weights["first.weight"], compiled.weights["second.weight"])
    assert not torch.equal(compiled.weights["first.weight"], model().first.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    """The compiled module computes in the model's dtype, with everything kept exactly; the file is float32."""
    original = model().to(dtype)
    compiled = autorep_fx.transform(original, "100%", example_inputs=X.to(dtype))
    outputs = compiled(X.to(dtype))
    assert outputs.dtype == dtype
    assert torch.equal(outputs, original(X.to(dtype)))
    assert compiled.export(tmp_path / "model.onnx").comparisons == 4


def test_training_in_float16_is_refused() -> None:
    """With how to get a float16 file all the same; bfloat16 and float64 train."""
    for dtype in (torch.bfloat16, torch.float64):
        data = [(X.to(dtype), torch.tensor([0, 1, 2, 3]))] * 2
        config = {"training": {"epochs": 1}, "finetune": {"epochs": 0}}
        assert autorep_fx.transform(model().to(dtype), "50%", data=data, config=config).comparisons == 2
    with pytest.raises(ConfigError, match=r"export: \{dtype: float16\}"):
        autorep_fx.transform(model().half(), "50%", data=[(X.half(), torch.tensor([0, 1, 2, 3]))])
