"""Names in the exported graph, for Netron and for tables per node."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import nn

import autorep_fx


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.act(self.conv(x)) - 0.5)


def test_nodes_are_called_after_their_modules(tmp_path: Path) -> None:
    """Module path and operator; numbered where a module makes several calls; all different."""
    torch.manual_seed(0)
    blocks = nn.Sequential(_Block(), _Block())
    model = nn.Sequential(nn.Conv2d(1, 4, 3), blocks, nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(8, 1, 8, 8)
    for budget in ("100%", "10%"):
        path = tmp_path / f"{budget}.onnx"
        autorep_fx.transform(model, budget, example_inputs=x).export(path)
        nodes = onnx.load(path).graph.node
        names = [node.name for node in nodes]
        assert len(set(names)) == len(names)
        by_operator = {node.name: node.op_type for node in nodes}
        assert by_operator["0/Conv"] == by_operator["1.1.conv/Conv"] == "Conv"
        relus = [name for name in names if by_operator[name] == "Relu"]
        if budget == "100%":
            assert relus == ["1.0.act/Relu", "1.0.act/Relu_1", "1.1.act/Relu", "1.1.act/Relu_1"]
        assert all(name.split("/")[0] in ("1.0.act", "1.1.act") for name in relus)
        assert names[-1] == "3/Gemm"
