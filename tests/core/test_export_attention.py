"""Attention of any number of axes is exported, with the softmax counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
import independent_counter


class Attention(nn.Module):
    """Attention over tokens of width 4, the leading axes being ``axes`` after the batch."""

    def __init__(self, axes: tuple[int, ...], causal: bool) -> None:
        super().__init__()
        self.axes, self.causal = axes, causal
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(x.shape[0], *self.axes, 6, 4)).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return F.gelu(self.head(y.transpose(-1, -2).flatten(1).reshape(x.shape[0], -1, 4)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axes", [(), (2,), (3, 2), (2, 3, 2)], ids=["3", "4", "5", "6"])
def test_attention_of_any_number_of_axes_is_exported(axes: tuple[int, ...], causal: bool, tmp_path: Path) -> None:
    """Outputs equal torch's (the export's own check), and the softmax of a query row compares 5 times."""
    torch.manual_seed(0)
    rows = 6 * torch.Size(axes).numel()
    x = torch.randn(4, rows, 4)
    compiled = autorep_fx.transform(Attention(axes, causal).eval(), "50%", example_inputs=x)
    assert compiled.plan.fixed_comparisons == rows * 5
    checked = compiled.export(tmp_path / "model.onnx")
    assert checked.comparisons == rows * 5 + rows * 4 // 2
    assert independent_counter.count(tmp_path / "model.onnx") == checked.comparisons
