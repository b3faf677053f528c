"""Capture: any module in, one functional ATen graph with a dynamic batch out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autorep_fx.errors import ConfigError, UnsupportedModelError
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.exported import from_exported, is_exported, settle_shapes
from autorep_fx.passes.flatten import flat_module
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.norm_records import record_modes
from autorep_fx.passes.source import is_library

__all__ = ["capture_graph", "export_program"]

logger = logging.getLogger(__name__)
# What torch.export says of a height or width that is to be free.
_FIXED = re.compile(r"marked L\['(\w+)'\]\S*\.size\(\)\[(\d+)\] as dynamic but your code specialized it .*?\((\d+)\)")
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
    _check_scripted(model)
    _check_names(model)
    original = _copy(model).train()
    owners = dict(original.named_modules(remove_duplicate=False))
    frozen = {name for name, owner in owners.items() if not owner.training}
    original.eval()
    _register_dataclasses((inputs.args, dict(inputs.kwargs), inputs.try_on(original)))
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


def _check_scripted(model: nn.Module) -> None:
    """Refuse modules without Python code.

    Raises:
        UnsupportedModelError: With every such module.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in found if not any(name.startswith(f"{o}." if o else "") for o in found if o != name)]
    if outermost:
        raise UnsupportedModelError(
            [f"{name or 'the model'}: a scripted or traced module has no Python code to capture" for name in outermost],
            fix="Pass the nn.Module that it was made from.",
        )


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
            fix="Remove what does not copy (open files, locks, non-leaf tensors) from the model's attributes; weights "
            "of torch.nn.utils.weight_norm by torch.nn.utils.remove_weight_norm.",
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
        inputs: Example inputs; a batch of 1 is repeated, because it would be taken for a constant. They say whether
            the batch is fixed, and whether heights and widths are free.

    Raises:
        UnsupportedModelError: It cannot be captured.
    """
    batch = torch.export.Dim("batch", min=1)
    example = inputs.resized(max(2, inputs.size))
    leaves, spec = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
    places = inputs.free_axes()
    if isinstance(model, CapturedModule):  # of an exported program some may be fixed
        places = [place for size in model.sizes for place in size.axes]
    axes: list[Any] = []
    position = -1
    for leaf, batched in zip(leaves, inputs.flags(), strict=True):
        position += isinstance(leaf, Tensor)
        free: dict[int, Any] = {0: batch} if batched and not inputs.fixed_batch else {}
        # What relations the sizes must have (multiples, equal ones) torch finds out by itself.
        free |= {axis: torch.export.Dim.DYNAMIC for place, axis in places if place == position}
        axes.append((free or None) if isinstance(leaf, Tensor) else None)
    args, kwargs = pytree.tree_unflatten(axes, spec)
    # torch.export wants the shapes under the names of forward's parameters.
    shapes = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    try:
        with torch.enable_grad(), _quiet_torch():
            return torch.export.export(model, example.args, dict(example.kwargs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        logger.debug("torch.export failed", exc_info=True)
        fixed = _FIXED.findall(str(error))
        obstacles = [f"its code fixes axis {axis} of {name} to {size}" for name, axis, size in fixed]
        obstacles = obstacles or [f"torch.export cannot capture it: {_reason(error)}"]
        # Capture stops at the first obstacle; these are known to be others.
        obstacles += [
            f"{name} ({type(module).__name__}) compares inside itself, out of reach"
            for name, module in model.named_modules() if isinstance(module, nn.RNNBase)
        ]  # fmt: skip
        raise UnsupportedModelError(obstacles, fix=_fix(inputs)) from error


def _fix(inputs: ExampleInputs) -> str:
    parts = ["Rewrite the part that is named: branches on data values cannot be captured"]
    if not inputs.fixed_batch:
        parts.append(
            ", nor code that fixes the batch, such as len(x) (write x.shape[0]) or int(x.shape[0]); or fix the batch "
            "to the example's, with capture: {dynamic_batch: false}"
        )
    if inputs.any_size:
        parts.append(
            ". Height and width are to be free: code that fixes them cannot be captured either; pool to a fixed "
            "number of values before a linear layer (nn.AdaptiveAvgPool2d(1)), or leave capture: {dynamic_size} off"
        )
    return "".join(parts) + "."


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
