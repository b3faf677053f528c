"""Kept channels in the form that onnxruntime's CPU kernels compute without leaving their blocked layout.

A site with some kept channels is lowered to slices and their concatenation. These need the usual layout: two
conversions and two copies of the whole tensor. Here all of it is computed as what is replaced, and the kept channels
are put over that by convolutions of 1×1 with weights 0 and 1, which stay in blocks and take the constants along:

    y = x·x + put(relu(pick(x)) − pick(x)²) + constant

The subtraction cancels: what is left is off by |x| times the rounding of relu(x), so that sites with large inputs stay
as they are. Where only this site reads the convolution before it, nothing is subtracted: the kept channels are stored
times 2⁻³⁰ and picked out times 2³⁰, both exact, and x·x leaves 2⁻⁶⁰ of their squares: less than 2⁻²⁴ for |x| < 2¹⁸, and
less than relu(x) is rounded by for all that are larger, up to 2³⁵. Fixed point has no such numbers: a file in this form
is for onnxruntime alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.export.blocks import stays_in_blocks
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.cut_sites import CUT_KEY, CutSite
from autorep_fx.passes.graphs import add_buffer, finish, node_shape
from autorep_fx.passes.linear_ops import LinearOp

__all__ = ["with_kept_channels_in_blocks"]

aten = torch.ops.aten
_HOLDER = "autorep_blocked"
# Most kept channels, and their largest share, for which two convolutions cost less than slices; at the limits they take
# about as long. Chains of 3×3 layers with 64 and 256 channels and of bottlenecks with 256 to 2,048, batches 1 to 32,
# onnxruntime 1.31.1, AVX2.
_MOST, _LARGEST_SHARE = 32, 0.25
# Blocks have 8 channels, 16 with AVX-512. Kernels take any number up to that, and above it multiples.
_BLOCK, _LARGEST_BLOCK = 8, 16
# Exact, and its square is less than float32 resolves beside 1.
_TINY = 2.0**-30
# Largest input from whose activation its square is taken away again: five bits of 24 are lost.
_FARTHEST = 32.0


def with_kept_channels_in_blocks(module: CapturedModule) -> int:
    """Rewrite sites whose kept channels were cut out, where the tensor is in blocks and few are kept.

    Returns:
        How many were rewritten.
    """
    blocked, rewritten = set[fx.Node](), 0
    for node in list(module.graph.nodes):
        site = _Site.of(module, node)
        if site is not None and site.source in blocked and site.gains:
            blocked.add(site.replace())
            rewritten += 1
        elif stays_in_blocks(node, blocked):
            blocked.add(node)
    if rewritten:
        module.graph.eliminate_dead_code()
        finish(module)
    return rewritten


class _Site:
    """One site, at the concatenation of its channels."""

    def __init__(
        self, module: CapturedModule, node: fx.Node, cut: CutSite, source: fx.Node, slices: set[fx.Node]
    ) -> None:
        self.module, self.node, self.cut, self.source = module, node, cut, source
        self.channels = len(cut.shift)
        # Whether the convolution before has no other reader, so that its outputs may be scaled.
        alone = self.source.target is aten.conv2d.default and set(self.source.users) == slices
        self.is_free = cut.squares and alone

    @classmethod
    def of(cls, module: CapturedModule, node: fx.Node) -> _Site | None:
        """The site of images ``(N, C, H, W)`` that ends at ``node``; None where none does."""
        cut, shape = node.meta.get(CUT_KEY), node_shape(node)
        if cut is None or shape is None or len(shape) != 4 or node.target is not aten.cat.default:
            return None
        slices = {_slice_of(part) for part in node.all_input_nodes}
        [source, *others] = {None if found is None else found.args[0] for found in slices}
        if others or not isinstance(source, fx.Node):  # a pass of the user's has edited the site
            return None
        return cls(module, node, cut, source, {found for found in slices if found is not None})

    @property
    def gains(self) -> bool:
        """Whether the form can write this site, is exact enough, and is the faster one."""
        few = len(self.cut.kept) <= min(_MOST, _LARGEST_SHARE * self.channels)
        exact = self.is_free or (self.cut.is_plain and self.cut.reach <= _FARTHEST)
        return few and exact and self.channels % _BLOCK == 0

    def replace(self) -> fx.Node:
        """Write the site in this form; returns its new result."""
        cut, x = self.cut, self._store_times() if self.is_free else self.source
        with self.module.graph.inserting_before(self.node):
            dense = self._call(aten.mul.Tensor, x, x) if cut.squares else x
            picked = self._pick(x, cut.scale_in / (_TINY if self.is_free else 1.0))
            value = self._call(cut.activation.target, picked, *cut.activation.scalars)
            value.kwargs = dict(cut.activation.options)
            if not self.is_free:
                under = self._call(aten.mul.Tensor, picked, picked) if cut.squares else picked
                value = self._call(aten.sub.Tensor, value, under)
            result = self._call(aten.add.Tensor, self._put(value), dense)
        result.meta["val"] = self.node.meta["val"]
        self.node.replace_all_uses_with(result)
        return result

    def _store_times(self) -> fx.Node:
        linear = LinearOp(self.module, self.source)
        scale = torch.ones(self.channels, dtype=torch.float64)
        scale[self.cut.kept] = 1 / _TINY
        linear.give_output(scale)
        return linear.finish(f"{_HOLDER}.{self.node.name}.before")

    def _pick(self, x: fx.Node, scale: Tensor) -> fx.Node:
        cut = self.cut
        weight = torch.zeros(len(cut.kept), self.channels, dtype=torch.float64)
        weight[range(len(cut.kept)), cut.kept] = scale
        return self._convolution(x, weight, cut.shift_in, "pick")

    def _put(self, value: fx.Node) -> fx.Node:
        kept, width = self.cut.kept, len(self.cut.kept)
        if width > _BLOCK and width % _LARGEST_BLOCK:
            width += -width % _LARGEST_BLOCK
            value = self._call(aten.constant_pad_nd.default, value, [0, 0, 0, 0, 0, width - len(kept)])
        weight = torch.zeros(self.channels, width, dtype=torch.float64)
        weight[kept, range(len(kept))] = self.cut.scale_out
        return self._convolution(value, weight, self.cut.shift, "put")

    def _convolution(self, x: fx.Node, weight: Tensor, bias: Tensor, name: str) -> fx.Node:
        path = f"{_HOLDER}.{self.node.name}.{name}"
        constants: list[Any] = [self._buffer(f"{path}.weight", weight[:, :, None, None])]
        if bool(bias.any()):
            constants.append(self._buffer(f"{path}.bias", bias))
        return self._call(aten.conv2d.default, x, *constants)

    def _buffer(self, path: str, value: Tensor) -> fx.Node:
        dtype = self.node.meta["val"].dtype
        return self.module.graph.get_attr(add_buffer(self.module, path, value.to(dtype).contiguous()))

    def _call(self, target: Any, *args: Any) -> fx.Node:
        """A call in the name of the site; only those before and behind are asked for their shapes."""
        node = self.module.graph.call_function(target, args)
        node.meta = {key: value for key, value in self.node.meta.items() if key not in ("val", CUT_KEY)}
        return node


def _slice_of(part: Any) -> fx.Node | None:
    """What a part of the concatenation was computed of."""
    while isinstance(part, fx.Node) and part.target is not aten.slice.Tensor:
        part = part.args[0] if part.args else None
    return part if isinstance(part, fx.Node) else None
