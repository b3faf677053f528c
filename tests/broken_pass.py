"""A pass that breaks what it is given, to see that the checks find it."""

from __future__ import annotations

import torch
from torch import fx

from autorep_fx.passes.infra import Pass, PassResult


class DropBiasPass(Pass):
    """Drops the bias of every linear layer."""

    def call(self, module: fx.GraphModule) -> PassResult:
        """Drop them."""
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.linear.default:
                node.args = node.args[:2]
        module.recompile()
        return PassResult(module, modified=True)
