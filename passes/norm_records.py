"""Note per norm and dropout call what its owner was, so that train() and eval() mean what they meant."""

from __future__ import annotations

import torch
from torch import fx, nn

from autorep_fx.passes.captured import (
    NORM_KEY,
    TRAINING_ARGUMENT,
    CapturedModule,
    NormRecord,
    cumulative_batch_norm,
)
from autorep_fx.passes.graphs import calls, finish, is_call
from autorep_fx.passes.source import scope

__all__ = ["record_modes", "record_modes_of_program"]


def record_modes(module: CapturedModule, owners: dict[str, nn.Module], frozen: set[str]) -> None:
    """Note per norm and dropout call what its owner was, and give ``momentum=None`` its own meaning back."""
    dead: list[fx.Node] = []
    for node in calls(module, *TRAINING_ARGUMENT):
        path = scope(node)[0]
        # Captured in eval mode: what is in training all the same is so always.
        follows = node.args[TRAINING_ARGUMENT[node.target]] is False and path not in frozen  # type: ignore[index]
        cumulative = follows and getattr(owners.get(path), "momentum", 0.1) is None
        counter = _counter(module, node)
        node.meta[NORM_KEY] = NormRecord(follows_mode=follows, counter=None if cumulative else counter)
        if cumulative and counter:
            dead.append(_make_cumulative(module, node, counter))
    finish(module, dead)


def record_modes_of_program(module: CapturedModule) -> None:
    """The same for an exported program, whose modules are gone.

    Every norm with running statistics and every dropout follows the mode, whichever it was exported in. A momentum of
    0 with a counter is what ``momentum=None`` is exported as.
    """
    dead: list[fx.Node] = []
    for node in calls(module, *TRAINING_ARGUMENT):
        counter = _counter(module, node)
        norm = is_call(node, torch.ops.aten.batch_norm.default)
        cumulative = norm and counter is not None and node.args[6] == 0.0
        follows = not norm or node.args[3] is not None
        node.meta[NORM_KEY] = NormRecord(follows_mode=follows, counter=None if cumulative else counter)
        if cumulative and counter is not None:
            dead.append(_make_cumulative(module, node, counter))
    finish(module, dead)
    module.train().eval()  # whatever mode it was exported in


def _counter(module: CapturedModule, node: fx.Node) -> str | None:
    """Name of the ``num_batches_tracked`` buffer of a batch norm; None without one."""
    mean = node.args[3] if is_call(node, torch.ops.aten.batch_norm.default) else None
    if not isinstance(mean, fx.Node):
        return None
    name = (str(mean.target).rpartition(".")[0] + ".num_batches_tracked").lstrip(".")
    try:
        module.get_buffer(name)
    except AttributeError:
        return None
    return name


def _make_cumulative(module: CapturedModule, node: fx.Node, counter: str) -> fx.Node:
    x, weight, bias, mean, var, training, _, eps, *_ = node.args
    with module.graph.inserting_before(node):
        count = module.graph.get_attr(counter)
        replacement = module.graph.call_function(
            cumulative_batch_norm, (x, weight, bias, mean, var, training, count, eps)
        )
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    return node
