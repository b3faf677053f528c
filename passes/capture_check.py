"""A captured module computes what the model computes, at every batch and size that it is captured for."""

from __future__ import annotations

import torch
from torch import fx, nn

from autorep_fx.errors import DataError, InvariantError, UnsupportedModelError
from autorep_fx.passes.captured import TRAINING_ARGUMENT, CapturedModule
from autorep_fx.passes.export_obstacles import squeezed_batches
from autorep_fx.passes.flatten import uncountable
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.randomness import random_operations
from autorep_fx.passes.sizes import at_sizes, other_sizes
from autorep_fx.passes.stages import check_equal, tolerance_of

__all__ = ["check_as_model"]

_NORMS = (torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default)


def check_as_model(captured: CapturedModule, model: nn.Module, inputs: ExampleInputs) -> None:
    """Compare a captured module with the model, at other sizes too where these are to be free.

    Raises:
        UnsupportedModelError: The model is a program in train mode, draws random numbers, takes no other sizes than the
            example's, or does something else with a single sample.
        InvariantError: The two differ.
    """
    if isinstance(model, fx.GraphModule) and _in_train_mode(model):
        raise UnsupportedModelError(
            ["the program was exported in train mode, so that nothing tells what it computes in eval mode"],
            fix="Export model.eval(); or set verification: structure, which compares no outputs.",
        )
    random = random_operations(captured)
    if random:
        raise UnsupportedModelError(
            [*random, *uncountable(captured)],
            fix="Draw random numbers only where self.training is set, as nn.Dropout does, or pass them as inputs; or "
            "set verification: structure, which compares no outputs.",
        )
    for values in other_sizes(captured.sizes):
        try:
            at_sizes(inputs, captured.sizes, values).try_on(model)
        except DataError as error:
            chosen = ", ".join(f"{name} {size}" for name, size in values.items())
            raise UnsupportedModelError(
                [f"the model itself takes no other height and width: at {chosen}: {error.what}"],
                fix="Pool to a fixed number of values before a linear layer (nn.AdaptiveAvgPool2d(1)), or leave "
                "capture: {dynamic_size} off.",
            ) from error
    check_equal("capture", captured, model, inputs, tolerance_of(captured), sizes=captured.sizes)
    if not inputs.fixed_batch:
        _check_single(captured, model, inputs.resized(1))


def _in_train_mode(program: fx.GraphModule) -> bool:
    """Whether a norm with running statistics, or a dropout, has its training flag set."""
    for node in program.graph.nodes:
        position = TRAINING_ARGUMENT.get(node.target) if node.op == "call_function" else None
        running = node.target not in _NORMS or node.args[3] is not None
        if position is not None and running and node.args[position] is True:
            return True
    return False


def _check_single(captured: CapturedModule, model: nn.Module, alone: ExampleInputs) -> None:
    """Compare at a batch of 1, which capture never sees: code may do something else there.

    Raises:
        UnsupportedModelError: It does.
    """
    try:
        alone.try_on(model)
    except DataError:
        return  # the model takes no batch of 1, and nobody can expect it of what is compiled
    try:
        check_equal("capture", captured, model, alone, tolerance_of(captured), batches=(1,))
    except (InvariantError, RuntimeError, IndexError) as error:  # torch's own, of shapes that do not fit
        raise UnsupportedModelError(
            ["at a batch of 1 the model computes something else than at larger ones", *squeezed_batches(captured)],
            fix="Look for branches on the batch's size, such as if x.shape[0] > 1; or fix the batch to the example's, "
            "with capture: {dynamic_batch: false}.",
        ) from error
