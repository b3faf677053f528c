"""The captured module: an ``fx.GraphModule`` whose ``train()`` and ``eval()`` mean what they meant in the original.

``torch.export`` bakes the training flag into the calls of batch norm and dropout. :class:`CapturedModule` sets that
argument on ``train()``/``eval()``, with a record per call of what its owner was, because flipping it blindly is
silently wrong for norms without running statistics or with a cumulative average.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from autorep_fx.errors import DataError
from autorep_fx.gates.norm_gate import norm_then_gate
from autorep_fx.passes.graphs import is_call
from autorep_fx.passes.nested import batch_size
from autorep_fx.passes.sizes import FreeSize, check_batch, check_sizes, check_values

__all__ = ["CapturedModule", "NormRecord", "cumulative_batch_norm"]

NORM_KEY = "norm"

aten = torch.ops.aten
#: Position of the training flag in the calls that carry one.
TRAINING_ARGUMENT = {
    aten.batch_norm.default: 5,
    aten.instance_norm.default: 5,
    aten.dropout.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
    aten.feature_alpha_dropout.default: 2,
}


@dataclass(frozen=True)
class NormRecord:
    """What the owner of a norm or dropout call was before capture.

    Attributes:
        follows_mode: Whether ``train()`` changes it; False where it always uses batch statistics or always drops,
            and where the owner stays in eval mode (a frozen norm).
        counter: Name of the ``num_batches_tracked`` buffer to advance in training; None without one.
    """

    follows_mode: bool
    counter: str | None


def cumulative_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor,
    training: bool, counter: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Batch norm with ``momentum=None``: running statistics are the average over all batches so far.

    Args:
        x: ``(N, C, ...)``.
        weight: ``(C,)`` or None.
        bias: ``(C,)`` or None.
        mean: ``(C,)`` running mean, updated in training.
        var: ``(C,)`` running variance, updated in training.
        training: Whether to use and track batch statistics.
        counter: Batches tracked before this one, advanced in training.
        eps: Added to the variance.
    """
    momentum = 1.0 / float(counter.add_(1)) if training else 0.0
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


_BATCH_NORMS = (torch.ops.aten.batch_norm.default, cumulative_batch_norm, norm_then_gate)


class CapturedModule(fx.GraphModule):
    """A captured graph that trains like the module it was captured from.

    Attributes:
        training_differences: What it does otherwise than that module in training, as far as it was found out.
        sizes: Heights and widths of its inputs that are free.
        fixed_batch: The only batch that it takes; None for any.
        fixed_values: Position among the leaves of its inputs, and value, of what is no tensor.
    """

    training_differences: tuple[str, ...] = ()
    sizes: tuple[FreeSize, ...] = ()
    fixed_batch: int | None = None
    fixed_values: tuple[tuple[int, Any], ...] = ()

    def train(self, mode: bool = True) -> CapturedModule:
        """Set training mode, also in the calls that carry it as an argument."""
        super().train(mode)
        changed = False
        for node in self.graph.nodes:
            changed = _set_training(node, mode) or changed
        if changed:
            self.recompile()
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; in training, advance the counters of the norms first, as ``nn.BatchNorm`` does.

        Raises:
            DataError: The inputs have a height, width, batch, number or flag that the graph does not hold for.
        """
        if not torch.compiler.is_compiling():
            if self.fixed_values:
                check_values(self.fixed_values, (args, kwargs))
            if self.sizes:
                check_sizes(self.sizes, (args, kwargs))
            if self.fixed_batch is not None:
                check_batch(self.fixed_batch, (args, kwargs))
        if self.training:
            rows = batch_size((args, kwargs))
            for node in self.graph.nodes:
                record = node.meta.get(NORM_KEY)
                if record is None or not record.follows_mode:
                    continue
                if rows == 1 and is_call(node, *_BATCH_NORMS):
                    _require_spread(node)
                if record.counter is not None:
                    self.get_buffer(record.counter).add_(1)
        return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedModule:
        """Copy graph, parameters and mode."""
        with warnings.catch_warnings():
            # torch's own pytree spec warns about itself while it is copied.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            result = super().__deepcopy__(memo)
        assert isinstance(result, CapturedModule)
        result.training = self.training
        result.training_differences = self.training_differences
        result.sizes, result.fixed_batch, result.fixed_values = self.sizes, self.fixed_batch, self.fixed_values
        return result


def _require_spread(node: fx.Node) -> None:
    """Refuse a batch of 1 where a norm has one value per channel, as ``nn.BatchNorm`` does.

    Raises:
        DataError: Its variance over the batch would be 0, and the running one NaN.
    """
    if all(size == 1 for size in node.meta["val"].shape[2:]):
        raise DataError(
            "A batch norm in training needs more than one value per channel.",
            received="a batch of 1",
            fix="Use larger batches, or drop the last one (drop_last=True).",
        )


def _set_training(node: fx.Node, mode: bool) -> bool:
    """Set the training argument of a norm or dropout call; returns whether that changed anything."""
    if is_call(node, cumulative_batch_norm, norm_then_gate):
        position = 5
    elif node.target in TRAINING_ARGUMENT and node.op == "call_function":
        position = TRAINING_ARGUMENT[node.target]
    else:
        return False
    record = node.meta.get(NORM_KEY)
    if (record is not None and not record.follows_mode) or len(node.args) <= position:
        return False
    if node.args[position] is mode:
        return False
    node.update_arg(position, mode)
    return True
