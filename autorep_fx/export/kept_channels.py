"""Kept channels in the form that onnxruntime's CPU kernels compute without leaving their blocked layout.

A site with some kept channels is lowered to slices and their concatenation. These need the usual layout: two
conversions and two copies of the whole tensor. Here all of it is computed as what is replaced, and the kept channels
are put over that by convolutions of 1×1 with weights 0 and 1, which stay in blocks and take the constants along:

    y = x·x + put(relu(pick(x)) − pick(x)²) + constant

Where only this site reads the convolution before it, the kept channels are stored times 2⁻³⁰ and picked out times 2³⁰,
both exact. Then x·x leaves 2⁻⁶⁰ of their squares, less than float32 rounds relu(x) by for |x| < 2³⁵, and nothing has to
be subtracted. Fixed point has no such numbers: a file in this form is for onnxruntime alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.export.blocks import stays_in_blocks
from autorep_fx.export.joined_channels import Joined, joined_channels
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.graphs import add_buffer, finish
from autorep_fx.passes.linear_ops import LinearOp

__all__ = ["with_kept_channels_in_blocks"]

aten = torch.ops.aten
_HOLDER = "autorep_blocked"
# Most kept channels for which two convolutions cost less than slices: with 32 they take about as long, over chains of
# 3×3 layers with 64 channels and of bottlenecks with 256 to 2,048 (batches 1 to 32, onnxruntime 1.31.1, AVX2).
_MOST = 32
# Blocks have 8 channels, 16 with AVX-512. Kernels take any number up to that, and above it multiples.
_BLOCK, _LARGEST_BLOCK = 8, 16
# Exact, and its square is nothing beside 1 in float64 too.
_TINY = 2.0**-30


def with_kept_channels_in_blocks(module: CapturedModule) -> None:
    """Rewrite sites whose kept channels were cut out, where the tensor is in blocks and few are kept."""
    edit, blocked, modified = _Edit(module), set[fx.Node](), False
    for node in list(module.graph.nodes):
        joined = joined_channels(module, node) if node.target is aten.cat.default else None
        if joined is not None and joined.source in blocked and edit.gains_by(joined):
            blocked.add(edit.replace(joined))
            modified = True
        elif stays_in_blocks(node, blocked):
            blocked.add(node)
    if modified:
        module.graph.eliminate_dead_code()
        finish(module)


@dataclass(frozen=True)
class _Edit:
    """Emits the form in one graph."""

    module: CapturedModule

    def gains_by(self, joined: Joined) -> bool:
        """Whether the form has a way to write a site, and is the faster one."""
        fits = joined.channels % _BLOCK == 0 and len(joined.kept) <= _MOST
        return fits and (joined.is_plain or self._is_free(joined))

    def replace(self, joined: Joined) -> fx.Node:
        """Write a site in this form; returns its new result."""
        free = self._is_free(joined)
        x = self._store_times(joined) if free else joined.source
        with self.module.graph.inserting_before(joined.node):
            dense = self._call(joined.node, aten.mul.Tensor, x, x) if joined.squares else x
            picked = self._pick(joined, x, joined.scale_in / (_TINY if free else 1.0))
            value = self._call(joined.activation, joined.activation.target, picked, *joined.activation.args[1:])
            value.kwargs = dict(joined.activation.kwargs)
            if not free:
                under = self._call(joined.node, aten.mul.Tensor, picked, picked) if joined.squares else picked
                value = self._call(joined.node, aten.sub.Tensor, value, under)
            result = self._call(joined.node, aten.add.Tensor, self._put(joined, value), dense)
        result.meta["val"] = joined.node.meta["val"]
        joined.node.replace_all_uses_with(result)
        return result

    def _is_free(self, joined: Joined) -> bool:
        """Whether the convolution before the site has no other reader, so that its outputs may be scaled."""
        x = joined.source
        return joined.squares and x.target is aten.conv2d.default and set(x.users) == set(joined.slices)

    def _store_times(self, joined: Joined) -> fx.Node:
        linear = LinearOp(self.module, joined.source)
        scale = torch.ones(joined.channels, dtype=torch.float64)
        scale[joined.kept] = 1 / _TINY
        linear.give_output(scale)
        return linear.finish(f"{_HOLDER}.{joined.node.name}.before")

    def _pick(self, joined: Joined, x: fx.Node, scale: Tensor) -> fx.Node:
        weight = torch.zeros(len(joined.kept), joined.channels, dtype=torch.float64)
        weight[range(len(joined.kept)), joined.kept] = scale
        return self._convolution(joined, x, weight, joined.shift_in, "pick")

    def _put(self, joined: Joined, value: fx.Node) -> fx.Node:
        kept, width = joined.kept, len(joined.kept)
        if width > _BLOCK and width % _LARGEST_BLOCK:
            width += -width % _LARGEST_BLOCK
            value = self._call(joined.node, aten.constant_pad_nd.default, value, [0, 0, 0, 0, 0, width - len(kept)])
        weight = torch.zeros(joined.channels, width, dtype=torch.float64)
        weight[kept, range(len(kept))] = joined.scale_out
        return self._convolution(joined, value, weight, joined.shift, "put")

    def _convolution(self, joined: Joined, x: fx.Node, weight: Tensor, bias: Tensor, name: str) -> fx.Node:
        path = f"{_HOLDER}.{joined.node.name}.{name}"
        constants: list[Any] = [self._buffer(f"{path}.weight", weight[:, :, None, None], joined)]
        if bool(bias.any()):
            constants.append(self._buffer(f"{path}.bias", bias, joined))
        return self._call(joined.node, aten.conv2d.default, x, *constants)

    def _buffer(self, path: str, value: Tensor, joined: Joined) -> fx.Node:
        dtype = joined.node.meta["val"].dtype
        return self.module.graph.get_attr(add_buffer(self.module, path, value.to(dtype).contiguous()))

    def _call(self, origin: fx.Node, target: Any, *args: Any) -> fx.Node:
        """A call in the name of ``origin``; only those before and behind are asked for their shapes."""
        node = self.module.graph.call_function(target, args)
        node.meta = {key: value for key, value in origin.meta.items() if key != "val"}
        return node
