"""From a lowered torch module to an ONNX graph."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter.rules import common as rules
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.errors import UnsupportedModelError
from autorep_fx.export.attention import copy_before_views, with_four_axes
from autorep_fx.export.channel_affine import with_channel_norms
from autorep_fx.export.padding import keep_padding_apart
from autorep_fx.passes.capture import export_program
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.versions import installed

__all__ = ["translate"]

# Where the exporter notes the modules around a call.
_SCOPES = "pkg.torch.onnx.name_scopes"
# Elements of a constant that is computed in advance.
_FOLDED = 2**16
# Without these, shape inference loses the batch in reshapes to computed sizes.
_RULES = [
    rules.cast_cast_rule, rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule,
    rules.transpose_transpose_rule, rules.reshape_reshape_rule, rules.squeeze_reshape_1d_rule,
    rules.unsqueeze_unsqueeze_rule, rules.materialize_reshape_shape_rule, rules.collapse_slice_rule,
]  # fmt: skip


def translate(module: CapturedModule, example: ExampleInputs, opset: int) -> ir.Model:
    """A lowered module as an ONNX graph with readable names, simplified.

    Args:
        module: The module, on the CPU; its graph is edited on the way.
        example: Inputs of at least two samples.
        opset: ONNX opset.

    Raises:
        UnsupportedModelError: torch.export or the exporter cannot take it.
    """
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        registration.setLevel(logging.ERROR)  # it warns when torchvision is not installed
        warnings.simplefilter("ignore")  # the exporter's own deprecations; what matters is checked afterwards
        with_four_axes(module)
        keep_padding_apart(module)
        with_channel_norms(module)
        exported = export_program(module, example)
        copy_before_views(exported)
        try:
            program = torch.onnx.export(
                exported, dynamo=True, opset_version=opset, external_data=False, verbose=False, optimize=False
            )  # fmt: skip
        except Exception as error:  # the exporter raises types of its own per step
            raise UnsupportedModelError(
                [f"torch.onnx cannot translate it: {_innermost(error)}"],
                fix="Replace the operation that is named; the cause above has all of them.",
            ) from error
        finally:
            registration.setLevel(level)
    assert program is not None
    model = program.model
    _simplify(model)
    _name_nodes(model)
    common_passes.ClearMetadataAndDocStringPass()(model)  # stack traces would carry source paths
    model.producer_name, model.producer_version = "autorep-fx", installed(["autorep-fx"]).get("autorep-fx", "")
    model.graph.doc_string = ""
    _rename(model, module, example)
    return model


def _innermost(error: BaseException) -> str:
    """What the exporter's own error was caused by, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _simplify(model: ir.Model) -> None:
    """Fold constants, tidy reshapes and casts, drop what is unused and share equal weights.

    The exporter's own optimiser tries all its rewrite rules at every node, most of them fusions that onnxruntime does
    again on loading: on a ResNet-101 with its gates that is half of the time of an export.
    """
    common_passes.InlinePass()(model)
    fold_constants_ir(model, onnx_shape_inference=True, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
    rewriter.rewrite(model, pattern_rewrite_rules=_RULES)
    ir.passes.Sequential(
        common_passes.IdentityEliminationPass(),  # shape inference does not look behind one
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedFunctionsPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.DeduplicateInitializersPass(),
        common_passes.OutputFixPass(),
        common_passes.NameFixPass(),
    )(model)


def _name_nodes(model: ir.Model) -> None:
    """Nodes are called after the module that made the call and their operator: ``layer1.0.relu1/Relu``.

    What the exporter or its simplification added has no module of its own, and is called after the node before it.
    """
    path, taken = "", set[str]()
    for node in model.graph:
        scopes = node.metadata_props.get(_SCOPES)
        if scopes:
            path = ast.literal_eval(scopes)[-2]  # the last is the name of the call itself
        plain = name = f"{path}/{node.op_type}".lstrip("/")
        for number in itertools.count(1):
            if name not in taken:
                break
            name = f"{plain}_{number}"
        node.name = name
        taken.add(name)


def _rename(model: ir.Model, module: CapturedModule, example: ExampleInputs) -> None:
    """Outputs are called after their keys in a nested output, and free axes ``batch``, ``height`` and ``width``."""
    with torch.no_grad():
        leaves = pytree.tree_flatten_with_path(example.call(module))[0]
    paths = [path for path, leaf in leaves if isinstance(leaf, Tensor)]
    if any(paths):
        taken = {value.name for value in model.graph.inputs}
        for value, path in zip(model.graph.outputs, paths, strict=True):
            name = "_".join(re.sub(r"\W", "", pytree.keystr((key,))) for key in path)
            value.name = f"{name}_output" if name in taken else name
            taken.add(value.name)
    names = _axis_names(model, module)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if names and value.shape is not None:
            value.shape = ir.Shape([_renamed(size, pattern, names) for size in value.shape])


def _axis_names(model: ir.Model, module: CapturedModule) -> dict[str, str]:
    """The exporter's symbols for sizes of the inputs → ``batch``, and the names of the sizes that are free."""
    shapes = [value.shape or () for value in model.graph.inputs]
    free = {axis: size.name for size in module.sizes for axis in size.axes}
    names = {str(shapes[i][axis]): name for (i, axis), name in free.items() if not isinstance(shapes[i][axis], int)}
    batches = {str(shape[0]) for shape in shapes if shape and not isinstance(shape[0], int)}
    return {**dict.fromkeys(batches, "batch"), **names} if len(batches) == 1 else names


def _renamed(size: Any, pattern: re.Pattern[str], names: Mapping[str, str]) -> int | str | None:
    """A size in terms of those of the inputs; an unknown one stays unknown: one name would make all of them equal."""
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return pattern.sub(lambda found: names[found[0]], str(size))
