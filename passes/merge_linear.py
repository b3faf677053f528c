"""Merge linear operations that meet, where nothing is left between them and one is cheaper than two."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.graphs import Constants, add_buffer, drop_unused_buffers, finish, node_shape
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.linear_ops import LinearOp, free_name, is_linear
from autorep_fx.passes.shapes import record_missing_shapes

__all__ = ["MergeLinearPass"]

aten = torch.ops.aten
_HOLDER = "autorep_merged"


class MergeLinearPass(Pass):
    """Replaces two linear operations in a row by their product, computed in float64 and rounded once.

    1. The first has no other reader.
    2. Two linear layers; or two convolutions without groups of which the later is 1×1 without padding, or the earlier
       is 1×1 and the later pads nothing, or pads what has no bias: zeros are then zeros before it too.
    3. The product takes no more multiplications than the two.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Merge pairs, in the order of execution, so that chains become one."""
        names, constants = Counter[str](), Constants(module)
        modified = False
        for node in list(module.graph.nodes):
            first: Any = node.args[0] if node.args else None
            if not (is_linear(module, node) and is_linear(module, first)) or len(first.users) != 1:  # rule 1
                continue
            one, other = LinearOp(module, first), LinearOp(module, node)
            merged = _merged(one, other)
            if merged is not None:
                old = (*first.args[1:3], *node.args[1:3])
                _replace(module, one, other, merged, names)
                for value in dict.fromkeys(old):  # both may have one weight
                    constants.release(value)
                modified = True
        if modified:
            module.graph.eliminate_dead_code()
            drop_unused_buffers(module)
            finish(module)
            record_missing_shapes(module)
        return PassResult(module, modified)


_Merged = tuple[Tensor, Tensor, tuple[Any, ...]]


def _merged(one: LinearOp, other: LinearOp) -> _Merged | None:
    """Weight, bias and further arguments of the product; None where rules 2 and 3 do not hold."""
    if not one.is_convolution and not other.is_convolution:
        if one.inputs * other.outputs > one.outputs * (one.inputs + other.outputs):
            return None
        weight = other.weight.double() @ one.weight.double()
        return weight, other.bias + other.weight.double() @ one.bias, ()
    if one.node.target is not other.node.target or one.transposed or (one.groups, other.groups) != (1, 1):
        return None
    if not _is_cheaper(one, other):
        return None
    if _is_pointwise(other) and not any(_sizes(other, 4, 0)):
        return _with_later_point(one, other)
    if _is_pointwise(one) and not any(_sizes(one, 4, 0)) and set(_sizes(one, 3, 1)) == {1}:
        return _with_earlier_point(one, other)
    return None


def _with_later_point(one: LinearOp, other: LinearOp) -> _Merged:
    point = other.weight.double().flatten(1)
    weight = torch.einsum("om,m...->o...", point, one.weight.double())
    strides = [a * b for a, b in zip(_sizes(one, 3, 1), _sizes(other, 3, 1), strict=True)]
    return weight, other.bias + point @ one.bias, (strides, _sizes(one, 4, 0), _sizes(one, 5, 1), 1)


def _with_earlier_point(one: LinearOp, other: LinearOp) -> _Merged | None:
    if any(_sizes(other, 4, 0)) and bool(one.bias.any()):
        return None
    point, later = one.weight.double().flatten(1), other.weight.double()
    weight = torch.einsum("om...,mi->oi...", later, point)
    bias = other.bias + later.flatten(2).sum(2) @ one.bias
    return weight, bias, tuple(other.node.args[3:])


def _is_pointwise(op: LinearOp) -> bool:
    return math.prod(op.weight.shape[2:]) == 1


def _sizes(op: LinearOp, position: int, default: int) -> list[int]:
    """An argument with one number per axis of positions."""
    value, rank = argument(op.node, position, "", default), op.weight.dim() - 2
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    return given * rank if len(given) == 1 else given


def _is_cheaper(one: LinearOp, other: LinearOp) -> bool:
    places = [math.prod(shape) for op in (one, other) if (shape := _positions(op)) is not None]
    if len(places) != 2:
        return False
    kernels = [math.prod(op.weight.shape[2:]) for op in (one, other)]
    apart = sum(p * op.inputs * op.outputs * k for p, op, k in zip(places, (one, other), kernels, strict=True))
    return places[1] * one.inputs * other.outputs * math.prod(kernels) <= apart


def _positions(op: LinearOp) -> tuple[int, ...] | None:
    shape = (node_shape(op.node) or ())[2:]
    return shape if shape and all(isinstance(size, int) for size in shape) else None


def _replace(module: fx.GraphModule, one: LinearOp, other: LinearOp, merged: _Merged, names: Counter[str]) -> None:
    weight, bias, rest = merged
    dtype, node = other.weight.dtype, other.node
    path = free_name(module, _HOLDER, f"{one.node.name}_{node.name}", names)
    with module.graph.inserting_before(node):
        new_weight = module.graph.get_attr(add_buffer(module, f"{path}.weight", weight.to(dtype).contiguous()))
        new_bias = None
        if one.has_bias or other.has_bias:
            new_bias = module.graph.get_attr(add_buffer(module, f"{path}.bias", bias.to(dtype)))
        assert callable(node.target)
        result = module.graph.call_function(node.target, (one.node.args[0], new_weight, new_bias, *rest))
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)
    module.graph.erase_node(one.node)  # rule 1: nothing else reads it
