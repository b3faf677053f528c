"""Capture of what torch.export has already captured: an exported program, or its module."""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autorep_fx.errors import UnsupportedModelError
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.flatten import flat_module
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.norm_records import record_modes_of_program
from autorep_fx.passes.settled_sizes import settle_batch, settle_sizes

__all__ = ["from_exported", "is_exported", "module_of", "settle_shapes"]


def is_exported(model: Any) -> TypeGuard[torch.export.ExportedProgram | fx.GraphModule]:
    """Whether ``model`` is an exported program, or a graph of ATen calls alone, as its ``module()`` gives."""
    if isinstance(model, torch.export.ExportedProgram):
        return True
    if not isinstance(model, fx.GraphModule):
        return False
    nodes = list(model.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    aten = any(isinstance(node.target, torch._ops.OpOverload) for node in nodes)
    called = any(node.op == "call_method" for node in nodes)
    return aten and not called and all("val" in node.meta for node in inputs)


def module_of(model: torch.export.ExportedProgram | fx.GraphModule) -> fx.GraphModule:
    """The program as a module that can be called."""
    if isinstance(model, fx.GraphModule):
        return model
    module = model.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def from_exported(model: torch.export.ExportedProgram | fx.GraphModule, inputs: ExampleInputs) -> CapturedModule:
    """The captured module of an exported program, in eval mode; the program is copied.

    Raises:
        UnsupportedModelError: Its batch is fixed, or its graph has obstacles.
        DataError: It cannot take the example inputs.
    """
    traced = copy.deepcopy(module_of(model))
    values = [node.meta.get("val") for node in traced.graph.nodes if node.op == "placeholder"]
    shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor) and value.dim() > 0]
    if all(isinstance(shape[0], int) for shape in shapes) and not inputs.fixed_batch:
        raise UnsupportedModelError(
            [f"the program was exported for fixed sizes: {', '.join(map(str, shapes))}"],
            fix="Export it with a dynamic batch, dynamic_shapes=({0: torch.export.Dim('batch')},), pass the model, "
            "or fix the batch: capture: {dynamic_batch: false}.",
        )
    _drop_counting(traced)
    module = flat_module(traced)
    settle_shapes(module, inputs)
    record_modes_of_program(module)
    inputs.try_on(module)
    return module


def settle_shapes(module: CapturedModule, inputs: ExampleInputs) -> None:
    """Record the shapes of one example, with a symbol for the batch alone, and note what is free and what is fixed.

    Raises:
        UnsupportedModelError: Heights and widths are to be free, and no input has any that is.
    """
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    module.fixed_values = tuple((i, leaf) for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
    sizes = settle_sizes(module, inputs)
    module.sizes = sizes if inputs.any_size else ()
    if inputs.any_size and not sizes:
        raise UnsupportedModelError(
            ["height and width are to be free, and no input has any: a floating-point tensor (N, C, H, W)"],
            fix="Leave capture: {dynamic_size} off; or export the program with dynamic axes 2 and 3.",
        )
    if inputs.fixed_batch:
        module.fixed_batch = inputs.size
        settle_batch(module, inputs.size)


def _drop_counting(traced: fx.GraphModule) -> None:
    """Drop what advances the counters of norms, in a program that was exported in train mode: the modes do that."""
    for node in traced.graph.find_nodes(op="call_function", target=torch.ops.aten.add_.Tensor):
        written = node.args[0]
        if isinstance(written, fx.Node) and str(written.target).endswith("num_batches_tracked") and not node.users:
            traced.graph.erase_node(node)
