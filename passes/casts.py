"""A graph in another floating-point type, casts in it included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["cast_floating"]


def cast_floating(module: fx.GraphModule, dtype: torch.dtype) -> None:
    """Cast tensors, and make casts and new tensors that name a floating-point type name this one; in place.

    Without the second part a model of mixed precision would multiply two types. Recorded types follow.
    """

    # Module.to(dtype) would take the imaginary part of complex weights away.
    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    module._apply(cast)
    changed = False
    for node in module.graph.nodes:
        _record(node, dtype)
        if node.op != "call_function" or not any(_names_type(value) for value in (*node.args, *node.kwargs.values())):
            continue
        node.args = tuple(dtype if _names_type(value) else value for value in node.args)
        node.kwargs = {key: dtype if _names_type(value) else value for key, value in node.kwargs.items()}
        changed = True
    if changed:
        module.recompile()


def _record(node: fx.Node, dtype: torch.dtype) -> None:
    value = node.meta.get("val")
    if isinstance(value, FakeTensor) and value.is_floating_point() and value.dtype != dtype:
        with value.fake_mode:
            node.meta["val"] = value.to(dtype)


def _names_type(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point
