"""The second output form: a ``torch.export`` archive, ``.pt2``, for users who stay in torch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.cost import count_comparisons
from autorep_fx.cost.metadata import METADATA
from autorep_fx.errors import OutputError, ParityError
from autorep_fx.export.verify import BATCHES, Verification
from autorep_fx.files import atomic_path
from autorep_fx.passes.capture import capture_graph, export_program
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.graphs import shared_copy
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.sizes import at_sizes, other_sizes
from autorep_fx.plan import Plan
from autorep_fx.versions import installed

__all__ = ["export_torch"]

# Of the same operations in the same library: what may differ is the order of a sum, relative to the largest output.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_ROUGH = 1e-2
_EXTRA = f"{METADATA}json"


def export_torch(module: CapturedModule, example: ExampleInputs, path: Path | str, *, plan: Plan) -> Verification:
    """Write an exported program, after it was read back, compared and recounted.

    Args:
        module: The lowered module; its own floating-point type is kept.
        example: Inputs that it takes.
        path: Target file, ending in ``.pt2``.
        plan: The plan, whose counts the program must have.

    Returns:
        What was verified.

    Raises:
        UnsupportedModelError: torch.export cannot take it.
        ParityError: What was read back computes something else, or the count differs from the plan's.
        OutputError: The file cannot be written, or has another ending.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise OutputError(
            "An exported program is a .pt2 file.", received=str(path), fix=f"Pass {path.with_suffix('.pt2')}."
        )
    module, example = shared_copy(module).cpu().eval(), example.to(device="cpu")
    program = export_program(module, example)
    for node in program.graph.nodes:  # the paths of source files are nobody's business
        node.meta.pop("stack_trace", None)
    described = {
        "plan_digest": plan.digest, "budget": plan.budget.to_json(), "comparisons": plan.comparisons,
        "versions": installed(["autorep-fx", "torch"]),
    }  # fmt: skip
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own deprecated parts; what matters is checked below
        torch.export.save(program, temporary, extra_files={_EXTRA: json.dumps(described)})
        loaded = torch.export.load(temporary)
        counted = count_comparisons(capture_graph(loaded, example))
        worst, problems = _parity(module, loaded.module(check_guards=False), example)
        if counted != plan.comparisons:
            problems.append(f"the program has {counted:,} comparisons, the plan {plan.comparisons:,}")
        if problems:
            raise ParityError(
                f"{path} failed its verification:\n" + "\n".join(f"  {text}" for text in problems),
                fix="This is a defect of the lowering or of torch.export: report it with the model.",
            )
    return Verification(counted, worst, _batches(example), plan.budget.to_json(), plan.digest)


def _batches(example: ExampleInputs) -> tuple[int, ...]:
    return (example.size,) if example.fixed_batch else BATCHES


def _parity(module: CapturedModule, loaded: nn.Module, example: ExampleInputs) -> tuple[float, list[str]]:
    """Largest difference relative to the largest output, and what is wrong."""
    cases = [example, *(at_sizes(example, module.sizes, values) for values in other_sizes(module.sizes))]
    worst, problems = 0.0, []
    for case in cases:
        for batch in _batches(example):
            inputs = case if example.fixed_batch else case.resized(batch)
            with torch.no_grad():
                outputs, expected = inputs.call(loaded), inputs.call(module)
            pairs = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(expected), strict=True)
            for ours, theirs in pairs:
                if not isinstance(theirs, Tensor):
                    continue
                difference = _difference(ours, theirs)
                worst = max(worst, difference)
                allowed = _TOLERANCE.get(theirs.dtype, _ROUGH)
                if not difference <= allowed:
                    problems.append(f"at batch {batch} outputs differ by {difference:.3g} (allowed: {allowed:.3g})")
    return worst, problems


def _difference(ours: Any, theirs: Tensor) -> float:
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if not theirs.numel():
        return 0.0
    a, b = ours.double(), theirs.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
