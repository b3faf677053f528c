"""ONNX export of a lowered module: written beside, verified, then renamed."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.cost.metadata import METADATA
from autorep_fx.errors import ParityError, UnsupportedModelError
from autorep_fx.export.graph_only import on_cpu, shape_metadata
from autorep_fx.export.kept_channels import with_kept_channels_in_blocks
from autorep_fx.export.reference import SAMPLES, InputRecipe, ReferenceOutput, pack_outputs, reference_inputs
from autorep_fx.export.translate import translate
from autorep_fx.export.verify import TOLERANCE, Verification, verify
from autorep_fx.export.write import write_model
from autorep_fx.files import atomic_files
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.casts import cast_floating
from autorep_fx.passes.export_obstacles import export_obstacles
from autorep_fx.passes.graphs import shared_copy
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.nested import all_finite
from autorep_fx.passes.sizes import at_sizes, other_sizes
from autorep_fx.passes.stages import largest_difference
from autorep_fx.plan import Plan
from autorep_fx.versions import installed

__all__ = ["export_onnx"]

logger = logging.getLogger(__name__)
# Reference inputs are noise. A network of polynomials may answer noise with huge values, although it is well-behaved on
# its data: the noise is then narrowed until outputs are at most _USUAL times those of the example.
_SHRINK = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
_USUAL = 100.0
_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "numpy")


def export_onnx(
    module: CapturedModule, example: ExampleInputs, path: Path | str, *, plan: Plan, opset: int = 20,
    dtype: str = "float32", target: str = "any",
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
        target: What the file is for: ``any`` engine, or ``onnxruntime-cpu`` alone where that has a faster form.

    Returns:
        What was verified.

    Raises:
        UnsupportedModelError: ONNX has no form for it.
        ParityError: onnxruntime's outputs differ from torch's, or the count from the plan's.
        OutputError: The file cannot be written.
    """
    module, example = _ready(module, example, dtype)
    model = _translated(module, example, plan, opset, dtype, target)
    with atomic_files(path) as temporary:
        write_model(model, temporary)
        del model  # onnxruntime has weights of its own
        verification = _verified(temporary, module, example, dtype)
        if verification.comparisons != plan.comparisons:
            raise ParityError(
                "The exported graph does not spend what the plan says.",
                received=f"{verification.comparisons:,} comparisons in the graph, {plan.comparisons:,} in the plan",
                fix="This is a defect of the lowering or the exporter: report it with the model.",
            )
    return verification


def _ready(module: CapturedModule, example: ExampleInputs, dtype: str) -> tuple[CapturedModule, ExampleInputs]:
    """The module and its inputs on the CPU and in ``dtype``, after what no file can hold was refused.

    Raises:
        UnsupportedModelError: ONNX has no form for it.
        ParityError: Values exceed float16.
    """
    # In float32: rounding to float16 says nothing of the model.
    plain = on_cpu(module, torch.float32)
    obstacles = export_obstacles(plain, example.to(device="cpu", dtype=torch.float32))
    if obstacles:
        raise UnsupportedModelError(
            obstacles,
            fix="Mend what is listed. Outputs are tensors whose first axis is the batch, and each sample is computed "
            "by itself (norms with running statistics, track_running_stats=True).",
        )
    wanted = getattr(torch, dtype)
    tensors = (*module.parameters(), *module.buffers())
    own = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), wanted)
    if own != wanted and dtype == "float32":  # float16 is made on request
        logger.warning("The model is %s; the ONNX file is made in %s.", str(own).removeprefix("torch."), dtype)
    example = example.to(device="cpu", dtype=wanted).resized(max(2, example.size))
    module = on_cpu(plain, wanted)
    if wanted == torch.float16:
        _check_range(module, example)
    return module, example


def _translated(
    module: CapturedModule, example: ExampleInputs, plan: Plan, opset: int, dtype: str, target: str
) -> ir.Model:
    """The ONNX graph with all its metadata; what is rewritten for it is held against outputs of ``module`` as it is."""
    written = shared_copy(module)
    special = target == "onnxruntime-cpu" and _written_for_one_engine(written, plan)
    model = translate(written, example, opset)
    inputs = [value.name or "" for value in model.graph.inputs]
    recipes, references = _references(module, example, inputs)
    others = []
    for values in other_sizes(module.sizes):
        resized = _references(module, at_sizes(example, module.sizes, values), inputs)
        others.append(_parity_json(*resized))
    metadata = _metadata(plan, dtype, recipes, references) | shape_metadata(module)
    if special:
        metadata["target"] = target
    if others:
        metadata["parity"] = json.dumps({**json.loads(metadata["parity"]), "other_sizes": others})
    model.metadata_props.update({METADATA + key: value for key, value in metadata.items()})
    return model


def _written_for_one_engine(module: CapturedModule, plan: Plan) -> bool:
    """Write what onnxruntime's CPU kernels compute faster in another form; whether there was any."""
    sites = with_kept_channels_in_blocks(module)
    if not sites:
        logger.info("Nothing of the model has a faster form for onnxruntime: its file is for any engine.")
    elif plan.budget.is_cost:
        logger.warning(
            "The budget is %s, and the file is for onnxruntime alone: no secure engine takes it.", plan.budget
        )
    else:
        logger.info("Kept channels of %d sites are written for onnxruntime alone.", sites)
    return sites > 0


def _verified(path: Path, module: CapturedModule, example: ExampleInputs, dtype: str) -> Verification:
    """Verify the file; where its outputs differ, see whether rounding decides them in PyTorch already.

    Raises:
        ParityError: They differ.
        UnsupportedModelError: They differ, and so do those of the module from its own in float64; or the module's own
            are constant.
    """
    try:
        return verify(path)
    except ParityError as error:
        exact = copy.deepcopy(module)
        cast_floating(exact, torch.float64)
        with torch.no_grad():
            outputs = example.call(module)
            moved = largest_difference(outputs, example.to(dtype=torch.float64).call(exact))
        if _constant(outputs):
            raise UnsupportedModelError(
                ["its outputs are one constant, in PyTorch too"],
                fix="Compile a trained model: a head of zeros computes nothing. If yours is trained, keep more.",
            ) from error
        if not TOLERANCE[dtype] < moved < float("inf"):
            raise
        said = f"in PyTorch alone those in {dtype} differ from those in float64 by {moved:.2g} of the largest"
        raise UnsupportedModelError(
            [f"rounding decides its outputs: {said}"],
            fix="Compile a trained model: layers that were never trained may amplify rounding from one to the next. "
            "Otherwise fewer replaced sites, or polynomials: {degree: 1}, may hold it back.",
        ) from error  # fmt: skip


def _constant(outputs: Any) -> bool:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return bool(leaves) and all(bool((leaf == leaf.flatten()[0]).all()) for leaf in leaves if leaf.numel())


def _check_range(module: CapturedModule, example: ExampleInputs) -> None:
    """Refuse a model that float16 cannot hold, before onnxruntime is blamed for it.

    Raises:
        ParityError: Outputs on the example inputs are not finite.
    """
    with torch.no_grad():
        finite = all_finite(example.call(module))
    if not finite:
        raise ParityError(
            "The model leaves the range of float16: somewhere its values exceed 65,504.",
            received="outputs in float16 that are not finite, on the example inputs",
            fix="Export in float32 (export: {dtype: float32}); or use degree 1 where polynomials make values large.",
        )


def _references(
    module: CapturedModule, example: ExampleInputs, names: list[str]
) -> tuple[list[InputRecipe], list[ReferenceOutput]]:
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    tensors = [(leaf, flag) for leaf, flag in zip(leaves, example.flags(), strict=True) if isinstance(leaf, Tensor)]
    own = [
        InputRecipe.of(name, tensor.numpy(), batched=batched)
        for name, (tensor, batched) in zip(names, tensors, strict=True)
    ]
    samples = example.size if example.fixed_batch else SAMPLES
    with torch.no_grad():
        usual = _largest(example.call(module))
        for shrink in _SHRINK:
            recipes = [replace(recipe, std=recipe.std * shrink) for recipe in own]
            made = iter(reference_inputs(recipes, samples, samples).values())
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
    return {
        "plan_digest": plan.digest,
        "budget": json.dumps(plan.budget.to_json()),
        "comparisons": str(plan.comparisons),
        "comparisons_by_site": json.dumps(sites),
        "dtype": dtype,
        "versions": json.dumps(installed(_PACKAGES)),
        "parity": json.dumps(_parity_json(recipes, references)),
    }


def _parity_json(recipes: list[InputRecipe], references: list[ReferenceOutput]) -> dict[str, Any]:
    return {"inputs": [r.to_json() for r in recipes], "outputs": [r.to_json() for r in references]}
