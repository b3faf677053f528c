"""Operations that draw random numbers although the model is in eval mode: nothing that has them can be checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autorep_fx.cost.dependence import operator_name
from autorep_fx.cost.nominal import UNCOUNTABLE
from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.source import location

__all__ = ["random_operations"]

# Argument by which an operation draws nothing, and the value at which it does not.
_QUIET: dict[str, tuple[int, str, Any]] = {
    "dropout": (2, "train", False), "feature_dropout": (2, "train", False), "alpha_dropout": (2, "train", False),
    "feature_alpha_dropout": (2, "train", False), "native_dropout": (2, "train", False),
    "rrelu": (3, "training", False), "rrelu_with_noise": (4, "training", False),
    "scaled_dot_product_attention": (4, "dropout_p", 0.0),
}  # fmt: skip


def random_operations(module: fx.GraphModule) -> list[str]:
    """One line per operation of a captured graph in eval mode that draws random numbers which reach an output."""
    found = []
    reaching = _reaching(module)
    for node in module.graph.nodes:
        target = node.target
        if node not in reaching or not isinstance(target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded not in target.tags:
            continue
        name = operator_name(node)
        if name in UNCOUNTABLE:  # recurrent layers, which have dropout inside, are refused for another reason
            continue
        if name in _QUIET:
            index, keyword, quiet = _QUIET[name]
            if argument(node, index, keyword, quiet) in (quiet, None) or argument(node, 1, "p", None) == 0.0:
                continue
        found.append(f"{name or target} ({location(node) or node.name}) draws random numbers in eval mode")
    return found


def _reaching(module: fx.GraphModule) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node.op == "output" or any(user in found for user in node.users):
            found.add(node)
    return found
