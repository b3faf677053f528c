"""Capture: any module in, one functional ATen graph with a dynamic batch out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autorep_fx.errors import ConfigError, UnsupportedModelError
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.exported import from_exported, is_exported
from autorep_fx.passes.flatten import flat_module
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.norm_records import record_modes
from autorep_fx.passes.source import is_library

__all__ = ["capture_graph", "export_program"]

logger = logging.getLogger(__name__)
_RESERVED = frozenset({"graph", "meta", "code"})


def capture_graph(model: nn.Module | torch.export.ExportedProgram, example_inputs: Any) -> CapturedModule:
    """Capture ``model`` in eval mode; the model itself is copied first and never touched.

    Args:
        model: The trained model; or an exported program (or its module), whose batch must be dynamic.
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
    if is_exported(model):
        return from_exported(model, inputs)
    if not isinstance(model, nn.Module):
        raise ConfigError("The model is no torch.nn.Module.", received=type(model).__name__, fix="Pass the model.")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            ["a scripted or traced module has no Python code to capture"],
            fix="Pass the nn.Module that it was made from.",
        )
    _check_names(model)
    original = _copy(model).train()
    owners = dict(original.named_modules(remove_duplicate=False))
    frozen = {name for name, owner in owners.items() if not owner.training}
    original.eval()
    _register_dataclasses((inputs.args, dict(inputs.kwargs), inputs.try_on(original)))
    traced = export_program(original, inputs).module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    module = flat_module(traced)
    record_modes(module, owners, frozen)
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


def _register_dataclasses(value: Any) -> None:
    """Tell torch of the dataclasses among inputs and outputs, so that it looks into them and keeps them."""
    for leaf in pytree.tree_leaves(value):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            _register_dataclasses([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])


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
            fix="Rewrite the part that is named: branches on data values cannot be captured, nor code that fixes the "
            "batch, such as len(x) (write x.shape[0]) or int(x.shape[0]).",
        ) from error


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without torch's own dumps of a failed capture: the error that follows says what matters."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._dynamo", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for torch_logger in loggers:
        torch_logger.setLevel(logging.CRITICAL)
    try:
        # It writes the graph of a failed capture to stderr itself.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # what matters of them ends in an error
            yield
    finally:
        for torch_logger, level in zip(loggers, levels, strict=True):
            torch_logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Type, first paragraph, and the innermost line of the user's code that the error passed through."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    where = f" (at {own[-1].filename}:{own[-1].lineno}: {own[-1].line})" if own else ""
    if "DataDependent" in type(error).__name__:
        return f"it branches on the value of a tensor{where}"
    paragraph = str(error).strip().split("\n\n")[0]
    return f"{type(error).__name__}: {paragraph}{where}"
