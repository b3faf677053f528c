"""Which sites share one order of channels: what a permutation or a packing of channels has to keep together."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from autorep_fx.cost.fx_count import input_dependent, operator_name, output_shape
from autorep_fx.passes.captured import cumulative_batch_norm
from autorep_fx.passes.channel_spaces import Broken, Layout, Spaces, Value
from autorep_fx.passes.channel_views import argument, cut, moved, padded, part, picked, reduced, reshaped
from autorep_fx.passes.graphs import SITE_KEY
from autorep_fx.sites import ChannelGroup, Site

__all__ = ["ChannelWalk", "channel_groups"]

# Operations that leave every channel where it is, and that torch does not tag as pointwise.
_KEEPING = {
    "_to_copy", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "alias", "alpha_dropout", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "batch_norm", "clone", "contiguous", "detach", "dropout", "expand", "expand_as", "feature_dropout", "hardswish",
    "instance_norm", "layer_norm", "log_sigmoid", "log_softmax", "max_pool1d", "max_pool2d", "max_pool3d", "prelu",
    "reflection_pad2d", "replication_pad2d", "rms_norm", "softmax", "to", "type_as", "upsample_bicubic2d",
    "upsample_bilinear2d", "upsample_nearest2d",
}  # fmt: skip
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_SPLITS = {"split", "split_with_sizes", "chunk"}
_Handler = Callable[[Spaces, fx.Node, Value], Value]
_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), reshaped),
    **dict.fromkeys(("permute", "transpose", "t"), moved),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std"), reduced),
    **dict.fromkeys(("pad", "constant_pad_nd"), padded),
    "slice": cut,
    "select": picked,
}


def channel_groups(module: fx.GraphModule) -> tuple[ChannelGroup, ...]:
    """Groups of gateable sites whose output channels must share one order; every such site is in exactly one.

    Channels are followed forward through everything that leaves them where they are, and tied where values meet:
    sums, products, concatenations, depthwise convolutions. A dense convolution or linear layer takes its inputs in
    any order and starts channels of its own. What moves channels about (shuffles, views that split them, grouped
    convolutions) declines the groups that it touches, with the reason; so do the model's input and output, whose
    order is the user's. One walk over the nodes.

    Args:
        module: Canonical graph.
    """
    walk = ChannelWalk(module)
    return walk.spaces.groups(walk.members)


class ChannelWalk:
    """The walk itself, for what needs the channels of values that are no sites.

    Attributes:
        spaces: Lines of channels.
        members: Space by site name.
        values: Where the channels of each node's value are.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.spaces = Spaces()
        self.members: dict[str, int] = {}
        self.dependent = input_dependent(module.graph.nodes)
        self.values: dict[fx.Node, Value] = {}
        for node in module.graph.nodes:
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        value = self._value(node) if node in self.dependent else None
        site = node.meta.get(SITE_KEY)
        if site is not None and site.gateable:
            value = self._member(site, value)
        self.values[node] = value

    def _value(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return Broken("the order of the model's input is the user's")
        if node.op == "output":
            for source in node.all_input_nodes:
                self.spaces.decline(self.values[source], "the model's output shows them in this order")
            return None
        if not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
            return None  # a size
        return self._result(node)

    def _result(self, node: fx.Node) -> Value:
        if node.target is operator.getitem:
            return self._item(node)
        name = operator_name(node)
        if name in _SPLITS:
            return self._source(node)
        if name in _CONVOLUTIONS:
            return self._convolution(node)
        if name in ("linear", "addmm", "mm", "matmul", "embedding"):
            return self._dense(node, name)
        if name in ("cat", "concat", "concatenate"):
            return self._concatenated(node)
        if name in _HANDLERS:
            return _HANDLERS[name](self.spaces, node, self._source(node))
        return self._plain(node, name)

    def _source(self, node: fx.Node) -> Value:
        first: Any = node.args[0]
        return self.values.get(first)

    def _plain(self, node: fx.Node, name: str) -> Value:
        if name == "group_norm" and node.args[1] in (1, output_shape(node)[1]):
            return self._met([node.args[0]], node)
        if name == "roll":
            source, axes = self._source(node), argument(node, 2, "dims", ())
            if isinstance(source, Layout) and axes and source.axis not in [axis % source.rank for axis in axes]:
                return source
        pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
        gated = node.op == "call_module" and SITE_KEY in node.meta
        if pointwise or gated or name in _KEEPING or node.target is cumulative_batch_norm:
            return self._met(node.all_input_nodes, node)
        return self._break(node, f"{node.name} may move channels")

    def _break(self, node: fx.Node, reason: str) -> Value:
        """Whatever goes into ``node`` cannot be followed further."""
        for source in node.all_input_nodes:
            self.spaces.decline(self.values[source], reason)
        return Broken(reason)

    def _met(self, sources: Any, node: fx.Node) -> Value:
        """Values that meet element by element, with broadcasting from the last axis."""
        values = [self.values[source] for source in sources]
        broken = next((value for value in values if isinstance(value, Broken)), None)
        if broken is not None:
            return self._break(node, broken.reason)
        shape = output_shape(node)
        found: list[Layout] = []
        for value in values:
            if isinstance(value, Layout):
                layout = value.in_rank(len(shape))
                if shape[layout.axis] == layout.channels * layout.block:
                    found.append(layout)
                elif layout.channels * layout.block != 1:  # one channel that is broadcast to all ties nothing
                    return self._break(node, f"{node.name} changes the number of channels")
        if any((v.axis, v.channels, v.block) != (found[0].axis, found[0].channels, found[0].block) for v in found):
            return self._break(node, f"{node.name} joins different axes of channels")
        for other in found[1:]:
            self.spaces.tie(found[0].space, other.space, 0, node.name)
        return found[0] if found else None

    def _convolution(self, node: fx.Node) -> Value:
        source, channels = self._source(node), output_shape(node)[1]
        if self._multiplies(node, node.args[0]):
            return self._break(node, f"{node.name} multiplies two values of the graph")
        groups: Any = argument(node, 6, "groups", 1)
        if groups != 1:
            return self._grouped(node, source, groups, channels)
        if isinstance(source, Layout) and (source.axis, source.block) != (1, 1):
            self._break(node, f"{node.name} runs along the channels")
        return self.spaces.fresh(output_shape(node), 1)

    def _grouped(self, node: fx.Node, source: Value, groups: int, channels: int) -> Value:
        given = output_shape(node.args[0])[1]  # type: ignore[arg-type]
        if groups == given == channels and isinstance(source, Layout) and source.axis == 1:
            self.spaces.note(source, node.name)
            return source
        reason = f"{node.name} is a convolution in {groups} groups of channels"
        if isinstance(source, Broken):
            reason = source.reason
        self._break(node, reason)
        result = self.spaces.fresh(output_shape(node), 1)
        self.spaces.decline(result, reason)
        return result

    def _dense(self, node: fx.Node, name: str) -> Value:
        """A linear layer or a table: takes the last axis in any order and gives it anew."""
        x: Any
        weight: Any
        x, weight = (node.args[1], node.args[0]) if name == "embedding" else (node.args[0], node.args[1])
        if name == "addmm":
            x, weight = node.args[1], node.args[2]
        source = self.values.get(x)
        if self._multiplies(node, x) or len(output_shape(weight)) != 2:
            return self._break(node, f"{node.name} multiplies two values of the graph")
        if isinstance(source, Layout) and source.axis != source.rank - 1:
            self._break(node, f"{node.name} mixes another axis than the channels")
        shape = output_shape(node)
        return self.spaces.fresh(shape, len(shape) - 1)

    def _multiplies(self, node: fx.Node, x: Any) -> bool:
        """Whether the weights are computed from an input too."""
        return any(source in self.dependent for source in node.all_input_nodes if source is not x)

    def _concatenated(self, node: fx.Node) -> Value:
        parts: Any = node.args[0]
        shape = output_shape(node)
        axis = argument(node, 1, "dim", 0) % len(shape)
        values = [self.values[source] for source in parts]
        layouts = [value for value in values if isinstance(value, Layout)]
        if any(isinstance(value, Broken) for value in values) or all(value.axis != axis for value in layouts):
            return self._met(parts, node)
        if any((value.axis, value.block) != (axis, 1) for value in layouts):
            return self._break(node, f"{node.name} joins different axes of channels")
        whole, start = self.spaces.fresh(shape, axis), 0
        for source, value in zip(parts, values, strict=True):
            if isinstance(value, Layout):
                self.spaces.tie(whole.space, value.space, start, node.name)
            start += output_shape(source)[axis]
        return whole

    def _item(self, node: fx.Node) -> Value:
        """One result of an operation with several."""
        whole: Any = node.args[0]
        if operator_name(whole) in _SPLITS:
            return part(self.spaces, node, self.values[whole])
        return self.values[whole] if node.args[1] == 0 else Broken(f"{node.name} may move channels")

    def _member(self, site: Site, value: Value) -> Value:
        own = site.channels
        if isinstance(value, Layout) and (value.axis - 1, value.channels) == (site.channel_axis, own):
            self.members[site.name] = value.space
            return value
        alone = self.spaces.fresh((1, *site.shape), site.channel_axis + 1)
        self.members[site.name] = alone.space
        if value is None:
            return alone
        reason = value.reason if isinstance(value, Broken) else f"{site.name} does not act on whole channels"
        self.spaces.decline(alone, reason)
        self.spaces.decline(value, reason)
        return value
