"""Max pooling and the average over the same windows, which can take its place per channel."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from autorep_fx.cost.fx_count import operator_name
from autorep_fx.errors import ConfigError
from autorep_fx.passes.graphs import samples_shape
from autorep_fx.passes.source import location
from autorep_fx.sites import Site

__all__ = ["AVERAGES", "average_call", "opened", "pooled_values"]

aten = torch.ops.aten
_FIXED = {"max_pool1d": aten.avg_pool1d.default, "max_pool2d": aten.avg_pool2d.default,
          "max_pool3d": aten.avg_pool3d.default}  # fmt: skip
_ADAPTIVE = {"adaptive_max_pool1d": aten.adaptive_avg_pool1d.default,
             "adaptive_max_pool2d": aten.adaptive_avg_pool2d.default,
             "adaptive_max_pool3d": aten.adaptive_avg_pool3d.default}  # fmt: skip
#: Max pooling → the average pooling over the same windows.
AVERAGES = {name: name.replace("max", "avg") for name in (*_FIXED, *_ADAPTIVE)}


def average_call(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """The average pooling over the windows of a max pooling: what to call, and its arguments after the input.

    Padding is left out of the mean, as it is left out of the maximum.

    Raises:
        ConfigError: The windows are dilated, or their indices are used.
    """
    problem = _problem(node)
    if problem:
        raise ConfigError(
            f"There is no average pooling in place of {node.name} ({location(node) or node.target}).",
            received=problem,
            fix="Leave this site out of the substitution.",
        )
    name = operator_name(node)
    if name in _ADAPTIVE:
        return _ADAPTIVE[name], tuple(node.args[1:])
    kernel, stride, padding, _, ceil = _arguments(node)
    return _FIXED[name], (kernel, stride or kernel, padding, ceil, False)


def pooled_values(node: fx.Node) -> list[fx.Node]:
    """The nodes that hold the maxima: the call, or what takes them out of its pair with the indices."""
    if isinstance(node.meta.get("val"), (tuple, list)):
        return [user for user in node.users if user.target is operator.getitem]
    return [node]


def opened(node: fx.Node, site: Site) -> Site:
    """The site of a max pooling as one that gates serve; any other site, and one without an average, as it is."""
    if site.kind not in _FIXED or samples_shape(node) is None:
        return site
    problem = _problem(node)
    if problem:
        return replace(site, reason=f"no average can take its place: {problem}")
    return replace(site, reason=None, comparisons_per_element=site.comparisons // math.prod(site.shape), total=None)


def _problem(node: fx.Node) -> str | None:
    if any(user.args[1] != 0 for user in node.users if user.target is operator.getitem):
        return "its indices are used"
    if operator_name(node) in _FIXED:
        dilation = _arguments(node)[3]
        if any(size != 1 for size in (dilation if isinstance(dilation, (list, tuple)) else [dilation])):
            return f"its windows are dilated by {dilation}"
    return None


def _arguments(node: fx.Node) -> tuple[Any, Any, Any, Any, Any]:
    """Kernel, stride, padding, dilation and ceil mode of a max pooling."""
    defaults: dict[str, Any] = {"kernel_size": None, "stride": [], "padding": 0, "dilation": 1, "ceil_mode": False}
    found = [
        node.args[i] if len(node.args) > i else node.kwargs.get(name, default)
        for i, (name, default) in enumerate(defaults.items(), 1)
    ]
    return found[0], found[1], found[2], found[3], found[4]
