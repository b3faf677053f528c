"""Capture: any module in, one functional ATen graph with a dynamic batch out."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from autorep_fx.errors import ConfigError, UnsupportedModelError
from autorep_fx.passes.capture_obstacles import check_capturable
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.exported import from_exported, is_exported, settle_shapes
from autorep_fx.passes.flatten import flat_module
from autorep_fx.passes.free_dims import dynamic_shapes
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.nested import register_dataclasses
from autorep_fx.passes.norm_records import record_modes
from autorep_fx.passes.source import is_library

__all__ = ["capture_graph", "export_program"]

logger = logging.getLogger(__name__)
# What torch.export says of a height or width that is to be free.
_FIXED_BATCH = re.compile(r"marked batch as dynamic but your code specialized it to be a constant \((\d+)\)")
_FIXED = re.compile(r"marked L\['(\w+)'\]\S*\.size\(\)\[(\d+)\] as dynamic but your code specialized it .*?\((\d+)\)")


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
        ConfigError: The model was captured before, for other shapes than are asked for now.
    """
    inputs = ExampleInputs.of(example_inputs)
    if isinstance(model, CapturedModule):
        _check_free(model, inputs)
        return copy.deepcopy(model).eval()
    if is_exported(model):
        return from_exported(model, inputs)
    if not isinstance(model, nn.Module):
        raise ConfigError("The model is no torch.nn.Module.", received=type(model).__name__, fix="Pass the model.")
    check_capturable(model)
    original = _copy(model).train()
    owners = dict(original.named_modules(remove_duplicate=False))
    frozen = {name for name, owner in owners.items() if not owner.training}
    original.eval()
    register_dataclasses(inputs.try_on(original))
    traced = export_program(original, inputs).module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    module = flat_module(traced)
    settle_shapes(module, inputs)
    record_modes(module, owners, frozen)
    return module


def _check_free(model: CapturedModule, inputs: ExampleInputs) -> None:
    """Check that a module was captured with the batch and the sizes as free as they are asked for now.

    Raises:
        ConfigError: It was not.
    """
    captured = {"dynamic_size": bool(model.sizes), "dynamic_batch": model.fixed_batch is None}
    asked = {"dynamic_size": inputs.any_size, "dynamic_batch": not inputs.fixed_batch}
    if captured != asked:
        raise ConfigError(
            "The module was captured with other settings of 'capture'.",
            received=f"{captured}, asked for are {asked}",
            fix="Pass the same config to capture() and to what follows.",
        )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedModelError(
            [f"The model cannot be copied: {type(error).__name__}: {error}"],
            fix="Remove what does not copy (open files, locks, non-leaf tensors) from the model's attributes; weights "
            "of torch.nn.utils.weight_norm by torch.nn.utils.remove_weight_norm.",
        ) from error


def export_program(model: nn.Module, inputs: ExampleInputs) -> torch.export.ExportedProgram:
    """``torch.export`` with the batch dynamic in every tensor whose axis 0 has the size of the batch.

    Args:
        model: Model in eval mode.
        inputs: Example inputs; a batch of 1 is repeated, because it would be taken for a constant. They say whether
            the batch is fixed, and whether heights and widths are free.

    Raises:
        UnsupportedModelError: It cannot be captured.
    """
    example = inputs.resized(max(2, inputs.size))
    places = inputs.free_axes()
    if isinstance(model, CapturedModule):  # of an exported program some may be fixed
        places = [place for size in model.sizes for place in size.axes]
    shapes = dynamic_shapes(model.forward, inputs, places)
    try:
        with torch.enable_grad(), _quiet_torch():
            return torch.export.export(model, example.args, dict(example.kwargs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        logger.debug("torch.export failed", exc_info=True)
        obstacles = [f"its code fixes axis {a} of {name} to {n}" for name, a, n in _FIXED.findall(str(error))]
        obstacles += [f"its code fixes the batch to {n}" for n in dict.fromkeys(_FIXED_BATCH.findall(str(error)))]
        obstacles = obstacles or [f"torch.export cannot capture it: {_reason(error)}"]
        # Capture stops at the first obstacle; these are known to be others.
        obstacles += [
            f"{name} ({type(module).__name__}) compares inside itself, out of reach"
            for name, module in model.named_modules() if isinstance(module, nn.RNNBase)
        ]  # fmt: skip
        raise UnsupportedModelError(obstacles, fix=_fix(inputs)) from error


def _fix(inputs: ExampleInputs) -> str:
    parts = ["Rewrite the part that is named: branches on data values, float(), int() and .item() cannot be captured"]
    if not inputs.fixed_batch:
        parts.append(
            ", nor code that fixes the batch, such as len(x) (write x.shape[0]) or int(x.shape[0]); or fix the batch "
            "to the example's, with capture: {dynamic_batch: false}"
        )
        if sum(inputs.flags()) > 1:
            parts.append("; or say which inputs have no batch, with capture: {batch_dims: {NAME: null}}")
    if inputs.any_size:
        parts.append(
            ". Height and width are to be free: code that fixes them cannot be captured either; pool to a fixed "
            "number of values before a linear layer (nn.AdaptiveAvgPool2d(1)), or leave capture: {dynamic_size} off"
        )
    return "".join(parts) + ". Capture stops at the first of them, so there may be more."


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
        return f"it branches on the value of a tensor, or reads it as a number{where}"
    paragraph = str(error).strip().split("\n\n")[0]
    return f"{type(error).__name__}: {paragraph}{where}"
