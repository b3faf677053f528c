"""ONNX export of a lowered module: written beside, verified, then renamed."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter.rules import common as rules
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.errors import ParityError, UnsupportedModelError
from autorep_fx.export.attention import with_four_axes
from autorep_fx.export.padding import keep_padding_apart
from autorep_fx.export.reference import SAMPLES, InputRecipe, ReferenceOutput, pack_outputs, reference_inputs
from autorep_fx.export.verify import METADATA, Verification, verify
from autorep_fx.export.write import write_model
from autorep_fx.files import atomic_files
from autorep_fx.passes.capture import export_program
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.export_obstacles import export_obstacles
from autorep_fx.passes.graphs import shared_copy
from autorep_fx.passes.inputs import ExampleInputs, all_finite
from autorep_fx.plan import Plan

__all__ = ["export_onnx"]

logger = logging.getLogger(__name__)
# Reference inputs are noise. A network of polynomials may answer noise with huge values, although it is well-behaved on
# its data: the noise is then narrowed until outputs are at most _USUAL times those of the example.
_SHRINK = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
_USUAL = 100.0
# Elements of a constant that is computed in advance.
_FOLDED = 2**16
# Without these, shape inference loses the batch in reshapes to computed sizes.
_RULES = [
    rules.cast_cast_rule, rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule,
    rules.transpose_transpose_rule, rules.reshape_reshape_rule, rules.squeeze_reshape_1d_rule,
    rules.unsqueeze_unsqueeze_rule, rules.materialize_reshape_shape_rule, rules.collapse_slice_rule,
]  # fmt: skip
_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "numpy")


def export_onnx(
    module: CapturedModule, example: ExampleInputs, path: Path | str, *, plan: Plan, opset: int = 20,
    dtype: str = "float32",
) -> Verification:  # fmt: skip
    """Export, check parity with torch, recount, and only then put the file in its place.

    Args:
        module: The lowered module.
        example: Inputs that it takes.
        path: Target file.
        plan: The plan, whose counts the file must have and whose digest goes into its metadata.
        opset: ONNX opset, at least 18.
        dtype: ``float32`` or ``float16``; other floating-point models are cast, since onnxruntime's CPU lacks their
            convolutions.

    Returns:
        What was verified.

    Raises:
        UnsupportedModelError: ONNX has no form for it.
        ParityError: onnxruntime's outputs differ from torch's, or the count from the plan's.
        OutputError: The file cannot be written.
    """
    obstacles = export_obstacles(_on_cpu(module, torch.float32), example.to(device="cpu", dtype=torch.float32))
    if obstacles:
        raise UnsupportedModelError(
            obstacles,
            fix="Return tensors whose first axis is the batch, and compute each sample by itself (norms with running "
            "statistics, track_running_stats=True).",
        )
    wanted = getattr(torch, dtype)
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), wanted)
    if own != wanted and dtype == "float32":  # float16 is made on request
        logger.warning("The model is %s; the ONNX file is made in %s.", str(own).removeprefix("torch."), dtype)
    example = example.to(device="cpu", dtype=wanted).resized(max(2, example.size))
    module = _on_cpu(module, wanted)
    model = _translate(module, example, opset)
    inputs = [value.name or "" for value in model.graph.inputs]
    recipes, references = _references(module, example, inputs)
    metadata = _metadata(plan, dtype, recipes, references)
    model.metadata_props.update({METADATA + key: value for key, value in metadata.items()})
    with atomic_files(path) as temporary:
        write_model(model, temporary)
        del model  # onnxruntime has weights of its own
        verification = verify(temporary)
        if verification.comparisons != plan.comparisons:
            raise ParityError(
                "The exported graph does not spend what the plan says.",
                received=f"{verification.comparisons:,} comparisons in the graph, {plan.comparisons:,} in the plan",
                fix="This is a defect of the lowering or the exporter: report it with the model.",
            )
    return verification


def _on_cpu(module: CapturedModule, dtype: torch.dtype) -> CapturedModule:
    """A copy in eval mode on the CPU and in ``dtype``, with the same tensors where they are so already."""
    tensors = (*module.parameters(), *module.buffers())
    there = all(t.device.type == "cpu" and (t.dtype == dtype or not t.is_floating_point()) for t in tensors)
    return (shared_copy if there else copy.deepcopy)(module).to("cpu", dtype).eval()


def _translate(module: CapturedModule, example: ExampleInputs, opset: int) -> ir.Model:
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        registration.setLevel(logging.ERROR)  # it warns when torchvision is not installed
        warnings.simplefilter("ignore")  # the exporter's own deprecations; what matters is checked afterwards
        with_four_axes(module)
        keep_padding_apart(module)
        exported = export_program(module, example)
        _free_views(exported)
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
    common_passes.ClearMetadataAndDocStringPass()(model)  # stack traces would carry source paths
    model.producer_name, model.producer_version = "autorep-fx", _version("autorep-fx")
    model.graph.doc_string = ""
    _rename(model, module, example)
    return model


def _free_views(exported: torch.export.ExportedProgram) -> None:
    """Copy what an attention gave before it is viewed: its decomposition has other strides than it had at capture."""
    aten, graph = torch.ops.aten, exported.graph_module.graph
    attentions = graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)
    strided = list(attentions)
    for node in strided:  # grows while it is walked
        for user in list(node.users):
            if user.target in (aten.transpose.int, aten.permute.default):
                strided.append(user)
            elif user.target in (aten.view.default, aten.reshape.default, aten.flatten.using_ints):
                with graph.inserting_before(user):
                    copied = graph.call_function(
                        aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
                    )
                copied.meta = dict(node.meta)
                user.replace_input_with(node, copied)
    exported.graph_module.recompile()


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
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedFunctionsPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.DeduplicateInitializersPass(),
        common_passes.OutputFixPass(),
        common_passes.NameFixPass(),
    )(model)


def _rename(model: ir.Model, module: CapturedModule, example: ExampleInputs) -> None:
    """Outputs are called after their keys in a nested output, and the batch axis is called ``batch``."""
    with torch.no_grad():
        leaves = pytree.tree_flatten_with_path(example.call(module))[0]
    paths = [path for path, leaf in leaves if isinstance(leaf, Tensor)]
    if any(paths):
        taken = {value.name for value in model.graph.inputs}
        for value, path in zip(model.graph.outputs, paths, strict=True):
            name = "_".join(re.sub(r"\W", "", pytree.keystr((key,))) for key in path)
            value.name = f"{name}_output" if name in taken else name
            taken.add(value.name)
    symbols = {
        str(value.shape[0]) for value in model.graph.inputs if value.shape and not isinstance(value.shape[0], int)
    }
    if len(symbols) != 1:
        return
    pattern = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, pattern) for size in value.shape])


def _renamed(size: Any, pattern: re.Pattern[str]) -> int | str | None:
    """A size in terms of ``batch``; an unknown one stays unknown: one name would make all of them equal."""
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return pattern.sub("batch", str(size))


def _references(
    module: CapturedModule, example: ExampleInputs, names: list[str]
) -> tuple[list[InputRecipe], list[ReferenceOutput]]:
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    own = [
        InputRecipe.of(name, tensor.numpy(), batched=tensor.dim() > 0 and tensor.shape[0] == example.size)
        for name, tensor in zip(names, tensors, strict=True)
    ]
    with torch.no_grad():
        usual = _largest(example.call(module))
        for shrink in _SHRINK:
            recipes = [replace(recipe, std=recipe.std * shrink) for recipe in own]
            made = iter(reference_inputs(recipes, SAMPLES).values())
            filled = [torch.from_numpy(next(made)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(filled, spec)
            outputs = module(*args, **kwargs)
            if _largest(outputs) <= _USUAL * usual:
                break
    arrays = [leaf.detach().float().numpy() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return recipes, pack_outputs(arrays)


def _largest(outputs: Any) -> float:
    """Largest absolute value in nested outputs; infinity where any is not finite."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    tensors = [leaf for leaf in leaves if leaf.numel() and leaf.dtype != torch.bool]
    if not all_finite(outputs):
        return float("inf")
    return max((float(tensor.abs().max()) for tensor in tensors), default=0.0)


def _metadata(plan: Plan, dtype: str, recipes: list[InputRecipe], references: list[ReferenceOutput]) -> dict[str, str]:
    sites = {site.name: site.comparisons for site in plan.sites}
    sites |= {site.name: site.comparisons for site in plan.fixed}
    parity = {"inputs": [r.to_json() for r in recipes], "outputs": [r.to_json() for r in references]}
    versions = {name: _version(name) for name in _PACKAGES if _version(name)}
    return {
        "plan_digest": plan.digest,
        "budget": json.dumps(plan.budget.to_json()),
        "comparisons": str(plan.comparisons),
        "comparisons_by_site": json.dumps(sites),
        "dtype": dtype,
        "versions": json.dumps(versions),
        "parity": json.dumps(parity),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
