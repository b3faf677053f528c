"""Linear operations with constant weights: what they take over from their neighbours, and their new weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx

from autorep_fx.passes.channel_views import argument
from autorep_fx.passes.graphs import add_buffer, node_shape

__all__ = ["LinearOp", "constant_of", "free_name", "is_linear", "scaled_weight"]

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
# Elements that are in float64 at once: a large weight is never in float64 as a whole.
_AT_ONCE = 2**20


def is_linear(module: fx.GraphModule, node: Any) -> bool:
    """Whether ``node`` is a convolution of any kind or a linear layer, with tensors of the model's own."""
    if not isinstance(node, fx.Node) or node.target not in (*_CONVOLUTIONS, *_TRANSPOSED, aten.linear.default):
        return False
    if node.kwargs or not isinstance(node.args[0], fx.Node):
        return False
    given = [node.args[1], argument(node, 2, "bias")]
    return all(value is None or constant_of(module, value) is not None for value in given)


def constant_of(module: fx.GraphModule, value: Any) -> Tensor | None:
    """The tensor that a ``get_attr`` node names; None for anything else."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    owner, _, name = str(value.target).rpartition(".")
    tensor = getattr(module.get_submodule(owner), name)
    return tensor.detach() if isinstance(tensor, Tensor) else None


class LinearOp:
    """One call, with the forms that it takes its input and leaves its output in.

    Attributes:
        node: The call.
        columns: ``(inputs,)`` scale of the stored input, or None.
        rows: ``(outputs,)`` scale of the stored output, or None.
        bias: ``(outputs,)`` constant that is added to the true output, float64.
    """

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        weight, bias = constant_of(module, node.args[1]), constant_of(module, argument(node, 2, "bias"))
        assert weight is not None
        self.module, self.node, self.weight = module, node, weight
        self.transposed = node.target in _TRANSPOSED
        self.is_convolution = node.target is not aten.linear.default
        self.groups = int(argument(node, 6, "groups", 1)) if self.is_convolution else 1
        self.outputs = weight.shape[1] * self.groups if self.transposed else weight.shape[0]
        self.inputs = weight.shape[0] if self.transposed else weight.shape[1] * self.groups
        self.bias = torch.zeros(self.outputs, dtype=torch.float64) if bias is None else bias.double()
        self.has_bias = bias is not None
        self.columns: Tensor | None = None
        self.rows: Tensor | None = None
        self.changed = False

    @property
    def name(self) -> str:
        """Module path of the weights, as one name."""
        path = str(getattr(self.node.args[1], "target", self.node.name)).removesuffix(".weight")
        for holder in ("autorep_folded.", "autorep_packed.", "autorep_kept."):
            path = path.removeprefix(holder)
        return path.replace(".", "_").removesuffix("_weight")

    @property
    def axis(self) -> int:
        """Axis of the channels, in and out."""
        return 1 if self.is_convolution else len(node_shape(self.node) or ()) - 1

    @property
    def is_uniform(self) -> bool:
        """Whether a constant per input channel becomes a constant per output channel: nothing is padded or cropped."""
        if not self.is_convolution:
            return True
        return not self.transposed and not any(_listed(argument(self.node, 4, "padding", 0)))

    def take_input(self, scale: Tensor, shift: Tensor) -> None:
        """Work on ``stored`` instead of ``scale · stored + shift``; the shift is 0 unless the operation is uniform."""
        self.changed = True
        if bool(shift.any()):
            self.bias = self.bias + self._applied(shift)
        self.columns = None if bool((scale == 1).all()) else scale

    def give_output(self, scale: Tensor) -> None:
        """Leave the true output divided by ``scale``."""
        if not bool((scale == 1).all()):
            self.changed, self.rows = True, scale

    def add(self, constant: Tensor) -> None:
        """Add ``(outputs,)`` to the true output."""
        if bool(constant.any()):
            self.changed, self.bias = True, self.bias + constant

    def constant_outputs(self) -> Tensor:
        """``(outputs,)``: which have no weights at all, so that they are their bias."""
        if self.transposed:
            return torch.zeros(self.outputs, dtype=torch.bool)
        return ~(self.weight != 0).flatten(1).any(1)

    def _applied(self, shift: Tensor) -> Tensor:
        """The weights, summed over positions, times a constant per input channel."""
        result = torch.empty(self.outputs, dtype=torch.float64)
        per_group = self.inputs // self.groups
        rows = max(1, _AT_ONCE // max(1, self.weight[:1].numel()))
        for start in range(0, self.outputs, rows):
            part = self.weight[start : start + rows].double().flatten(2 if self.is_convolution else 1)
            part = part.sum(2) if self.is_convolution else part
            group = torch.arange(start, start + len(part)) // (self.outputs // self.groups)
            result[start : start + len(part)] = (part * shift.view(self.groups, per_group)[group]).sum(1)
        return result

    def finish(self, path: str) -> fx.Node:
        """Emit the new call in place of the old one, with its weights under ``path``; returns what stands for it."""
        dtype, graph, node = self.weight.dtype, self.module.graph, self.node
        rows = torch.ones(self.outputs, dtype=torch.float64) if self.rows is None else self.rows
        weight = self.weight
        if self.rows is not None or self.columns is not None:
            weight = scaled_weight(
                weight, 1 / rows, self.columns, groups=self.groups, transposed=self.transposed, dtype=dtype
            )
        with graph.inserting_before(node):
            new_weight: Any = node.args[1]
            if weight is not self.weight:
                new_weight = graph.get_attr(add_buffer(self.module, f"{path}.weight", weight))
            bias = None
            if self.has_bias or bool(self.bias.any()):
                bias = graph.get_attr(add_buffer(self.module, f"{path}.bias", (self.bias / rows).to(dtype)))
            assert callable(node.target)
            result = graph.call_function(node.target, (node.args[0], new_weight, bias, *node.args[3:]))
            result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        return result


def scaled_weight(
    weight: Tensor, rows: Tensor, columns: Tensor | None = None, *, groups: int = 1, transposed: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """A weight with its outputs times ``rows`` and its inputs times ``columns``, in float64 and rounded once.

    Args:
        weight: ``(outputs, inputs / groups, ...)``, or ``(inputs, outputs / groups, ...)`` where it is transposed.
        rows: ``(outputs,)``.
        columns: ``(inputs,)``; None for ones.
        groups: Groups of channels.
        transposed: Of a transposed convolution.
        dtype: Of the result.
    """
    outer, inner = (columns, rows) if transposed else (rows, columns)
    result = torch.empty_like(weight, dtype=dtype)
    table = None if inner is None else inner.view(groups, -1)
    size, tail = len(weight) // groups, [1] * (weight.dim() - 2)
    chunk = max(1, _AT_ONCE // max(1, weight[:1].numel()))
    for start in range(0, len(weight), chunk):
        part = weight[start : start + chunk].double()
        if outer is not None:
            part = part * outer[start : start + len(part)].view(-1, 1, *tail)
        if table is not None:
            part = part * table[torch.arange(start, start + len(part)) // size].view(len(part), -1, *tail)
        result[start : start + len(part)] = part
    return result


def free_name(module: fx.GraphModule, holder: str, name: str, taken: Counter[str]) -> str:
    """A path under ``holder`` that nothing has: one weight may be used by several calls, which ``taken`` counts."""
    owner = getattr(module, holder, None)
    while True:
        taken[name] += 1
        free = name if taken[name] == 1 else f"{name}_{taken[name]}"
        if not hasattr(owner, free):
            return f"{holder}.{free}"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
