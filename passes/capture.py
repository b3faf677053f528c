"""Capture: any module in, one functional ATen graph with a dynamic batch out."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autorep_fx.errors import ConfigError, DataError, NonFiniteError, UnsupportedModelError
from autorep_fx.passes.captured import (
    NORM_KEY,
    TRAINING_ARGUMENT,
    CapturedModule,
    NormRecord,
    cumulative_batch_norm,
)
from autorep_fx.passes.functionalize import FunctionalizePass
from autorep_fx.passes.graphs import calls, finish, is_call
from autorep_fx.passes.infra import Pipeline
from autorep_fx.passes.inline import InlinePass
from autorep_fx.passes.inputs import ExampleInputs, all_finite
from autorep_fx.passes.source import is_library, scope

__all__ = ["capture_graph", "export_program"]

logger = logging.getLogger(__name__)
_RESERVED = frozenset({"graph", "meta", "code"})


def capture_graph(model: nn.Module, example_inputs: Any) -> CapturedModule:
    """Capture ``model`` in eval mode; the model itself is copied first and never touched.

    Args:
        model: The trained model.
        example_inputs: A tensor ``(N, ...)``, a tuple of positional or a mapping of keyword arguments.

    Returns:
        A functional graph with the model's parameter names, in eval mode, without higher-order operations.

    Raises:
        UnsupportedModelError: It cannot be captured; every obstacle that was found is listed.
        DataError: The model cannot take the example inputs.
    """
    inputs = ExampleInputs.of(example_inputs)
    if isinstance(model, CapturedModule):
        return copy.deepcopy(model).eval()
    if not isinstance(model, nn.Module):
        raise ConfigError("The model is no torch.nn.Module.", received=type(model).__name__, fix="Pass the model.")
    _check_names(model)
    original = _copy(model).train()
    owners = dict(original.named_modules(remove_duplicate=False))
    frozen = {name for name, owner in owners.items() if not owner.training}
    original.eval()
    _try_forward(original, inputs)
    program = export_program(original, inputs)
    traced = program.module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    module = CapturedModule(traced, traced.graph)
    module.meta.clear()  # torch.export leaves its own hooks' bookkeeping here, which does not copy
    module.training = False
    Pipeline(InlinePass(), FunctionalizePass(), name="capture")(module)
    _record_modes(module, owners, frozen)
    return module


def _check_names(model: nn.Module) -> None:
    """Refuse names that the captured module needs for itself.

    Raises:
        UnsupportedModelError: With every such name.
    """
    own = [name for name, _ in (*model.named_children(), *model.named_parameters(), *model.named_buffers())]
    taken = [name for name in own if name in _RESERVED]
    if taken:
        raise UnsupportedModelError(
            [f"the attribute {name!r} has a name that a captured graph uses for itself" for name in taken],
            fix="Rename it, or wrap the model in another module.",
        )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedModelError(
            [f"The model cannot be copied: {type(error).__name__}: {error}"],
            fix="Remove what does not copy (open files, locks, non-leaf tensors) from the model's attributes.",
        ) from error


def _try_forward(model: nn.Module, inputs: ExampleInputs) -> None:
    """Run the model as it is, so that a wrong example is told from a model that cannot be captured."""
    try:
        with torch.no_grad():
            outputs = inputs.call(model)
    except Exception as error:
        shapes = [
            tuple(t.shape) for t in pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(t, Tensor)
        ]
        raise DataError(
            f"The model fails on the example inputs: {type(error).__name__}: {error}",
            received=f"tensors of shape {', '.join(map(str, shapes))}",
            fix="Pass example inputs that the model takes, with its device, dtype and shape.",
        ) from error
    if not all_finite(outputs):
        raise NonFiniteError(
            "The model's own outputs are not finite on the example inputs.",
            fix="Check its weights and norm statistics, and the scale of the inputs.",
        )


def export_program(model: nn.Module, inputs: ExampleInputs) -> torch.export.ExportedProgram:
    """``torch.export`` with the batch dynamic in every tensor whose axis 0 has the size of the batch.

    Args:
        model: Model in eval mode.
        inputs: Example inputs; a batch of 1 is repeated, because it would be taken for a constant.

    Raises:
        UnsupportedModelError: It cannot be captured.
    """
    batch = torch.export.Dim("batch", min=1)
    size = inputs.size
    example = inputs.resized(max(2, size))

    def dynamic(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
        return {0: batch} if batched else None

    # Asked of the example as it was given: after the resizing, other tensors may have its size on axis 0 too.
    args, kwargs = pytree.tree_map(dynamic, (inputs.args, dict(inputs.kwargs)))
    # torch.export wants the shapes under the names of forward's parameters.
    shapes = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    try:
        with torch.enable_grad(), _quiet_torch():
            return torch.export.export(model, example.args, dict(example.kwargs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        logger.debug("torch.export failed", exc_info=True)
        raise UnsupportedModelError(
            [f"torch.export cannot capture it: {_reason(error)}"],
            fix="Rewrite the part that is named: branches on data values and sizes that depend on the batch "
            "cannot be captured.",
        ) from error


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without torch's own dumps of a failed capture: the error that follows says what matters."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._dynamo", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for torch_logger in loggers:
        torch_logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them ends in an error
            yield
    finally:
        for torch_logger, level in zip(loggers, levels, strict=True):
            torch_logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Type, first paragraph, and the innermost line of the user's code that the error passed through."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    where = f" (at {own[-1].filename}:{own[-1].lineno}: {own[-1].line})" if own else ""
    paragraph = str(error).strip().split("\n\n")[0]
    return f"{type(error).__name__}: {paragraph}{where}"


def _record_modes(module: CapturedModule, owners: dict[str, nn.Module], frozen: set[str]) -> None:
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
