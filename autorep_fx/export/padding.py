"""Padding before max pooling, in a form that onnxruntime does not take for the pooling's own.

onnxruntime's PadFusion (1.31, from the basic level on) turns a padding with zeros before a max pooling into padding of
the pooling itself, which pads with minus infinity: wrong at the border wherever a whole window is negative, as in
networks that pool before their first activation (BiT). It only takes zeros.
"""

from __future__ import annotations

import torch
from torch import fx

from autorep_fx.cost.dependence import operator_name

__all__ = ["keep_padding_apart"]

aten = torch.ops.aten
# Smallest value that is not 0 in the dtype: far below any rounding of what it is compared with.
_ALMOST_ZERO = {torch.float16: 6e-8}
_DEFAULT = 1e-38
_MAX_POOLS = {"max_pool1d", "max_pool2d", "max_pool3d"}


def keep_padding_apart(module: fx.GraphModule) -> None:
    """Pad with the smallest number that is not 0, where zeros are padded before a max pooling."""
    modified = False
    for node in module.graph.nodes:
        if operator_name(node) not in ("pad", "constant_pad_nd") or not _pads_zeros(node):
            continue
        if any(operator_name(user) in _MAX_POOLS for user in node.users):
            value = _ALMOST_ZERO.get(node.meta["val"].dtype, _DEFAULT)
            node.target, node.args, node.kwargs = aten.constant_pad_nd.default, (*node.args[:2], value), {}
            modified = True
    if modified:
        module.graph.lint()
        module.recompile()


def _pads_zeros(node: fx.Node) -> bool:
    if operator_name(node) == "constant_pad_nd":
        return not (node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0))
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode == "constant" and not value
