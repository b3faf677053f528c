r"""Statistics of batch norms measured anew, over many batches and with the weights of now.

Running averages mix the statistics of the last dozen batches, made with weights that have moved since; one batch with
an outlier, which a polynomial squares, spoils them for the next dozen. Plain averages over more batches with still
weights are what "precise batch norm" uses (Wu and Johnson, arXiv 2105.07576). From zero, a forward pass leaves
:math:`(1 - (1 - m)^k) \cdot s` in a running statistic that is updated k times in it with momentum m, and so gives the
batch's own s whatever the momentum is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from autorep_fx.gates.collective import means_of_all
from autorep_fx.gates.norm_gate import norm_then_gate
from autorep_fx.passes.captured import NORM_KEY, CapturedModule, cumulative_batch_norm
from autorep_fx.passes.graphs import is_call
from autorep_fx.passes.inputs import ExampleInputs

__all__ = ["measure_norms"]

_NORMS = (torch.ops.aten.batch_norm.default, norm_then_gate, cumulative_batch_norm)
_MEAN, _VAR, _MOMENTUM = 3, 4, 6  # positions of the arguments
_COUNTER = "num_batches_tracked"


@dataclass
class _Statistic:
    """A running mean or variance: its buffer, the share of a batch's own value that a pass leaves, and the sum."""

    buffer: Tensor
    left: float
    total: Tensor


@torch.no_grad()
def measure_norms(
    network: CapturedModule, batches: Iterable[ExampleInputs], call: Callable[[ExampleInputs], object]
) -> int:
    """Set the running statistics to plain averages over batches; weights, counters and mode stay as they are.

    Args:
        network: A captured graph.
        batches: Training inputs; with several processes the part of this one.
        call: Runs the model that the network is part of.

    Returns:
        How many batches there were; with none, nothing is changed.
    """
    statistics = [*_statistics(network).values()]
    before = [statistic.buffer.clone() for statistic in statistics]
    counters = [value for name, value in network.named_buffers() if name.endswith(_COUNTER)]
    counts = [counter.clone() for counter in counters]
    was_training, count = network.training, 0
    network.train()
    try:
        for inputs in batches if statistics else ():
            for buffer in (*counters, *(statistic.buffer for statistic in statistics)):
                buffer.zero_()
            call(inputs)
            for statistic in statistics:
                statistic.total += statistic.buffer / statistic.left
            count += 1
    finally:
        network.train(was_training)
        buffers = [statistic.buffer for statistic in statistics] + counters
        for buffer, value in zip(buffers, before + counts, strict=True):
            buffer.copy_(value)
    if count:
        _average(statistics, count)
    return count


def _average(statistics: Iterable[_Statistic], count: int) -> None:
    for statistic in statistics:
        [mean] = means_of_all([statistic.total / count], weight=count)
        statistic.buffer.copy_(mean)


def _statistics(network: CapturedModule) -> dict[str, _Statistic]:
    """By buffer name, of the norms that follow the mode."""
    found: dict[str, _Statistic] = {}
    for node in network.graph.nodes:
        if not is_call(node, *_NORMS) or not _follows(node):
            continue
        # With its counter at zero a cumulative norm takes the whole of the batch.
        momentum = 1.0 if is_call(node, cumulative_batch_norm) else float(node.args[_MOMENTUM])
        for argument in (node.args[_MEAN], node.args[_VAR]):
            if not isinstance(argument, fx.Node):
                continue
            name = str(argument.target)
            buffer = network.get_buffer(name)
            known = found.setdefault(name, _Statistic(buffer, 0.0, torch.zeros_like(buffer)))
            known.left = 1 - (1 - known.left) * (1 - momentum)
    return {name: statistic for name, statistic in found.items() if statistic.left}


def _follows(node: fx.Node) -> bool:
    record = node.meta.get(NORM_KEY)
    return record is not None and record.follows_mode
