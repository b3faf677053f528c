"""Stage specs: what is true of a module after each stage, checked at the boundary."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from autorep_fx.cost.fx_count import input_dependent, node_comparisons
from autorep_fx.errors import InvariantError
from autorep_fx.passes.functionalize import mutates
from autorep_fx.passes.graphs import SITE_KEY, samples_shape
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.sizes import FreeSize, at_sizes, other_sizes

__all__ = ["check_canonical", "check_captured", "check_equal", "largest_difference", "tolerance_of"]


# Largest relative difference that a stage may make to outputs, by dtype: rounding, reordered sums.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


_CAPTURE_FIX = (
    "Look for what a captured graph cannot repeat: state that changes from call to call, several writes in place to "
    "one slice in a chain, autocast beside casts of its own; write these out, or report the model."
)


def tolerance_of(module: nn.Module) -> float:
    """Largest relative difference that a stage may make to the outputs of ``module``: its coarsest dtype decides."""
    tensors = (*module.parameters(), *module.buffers())  # a lowered module may hold buffers alone
    dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return max((_TOLERANCE.get(dtype, 1e-4) for dtype in dtypes), default=1e-4)


def _require(stage: str, problems: list[str]) -> None:
    if problems:
        lines = "\n".join(f"  {text}" for text in problems)
        fix = _CAPTURE_FIX if stage == "capture" else None
        raise InvariantError(f"After stage {stage!r} these do not hold:\n{lines}", fix=fix)


def check_captured(module: fx.GraphModule) -> None:
    """Functional ATen graph: no in-place call, no higher-order operation, dynamic batch.

    Raises:
        InvariantError: With every node that breaks it.
    """
    problems = []
    for node in module.graph.nodes:
        if mutates(node):
            problems.append(f"{node.name} works in place")
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            problems.append(f"{node.name} is a higher-order operation")
        if node.op in ("call_method", "call_module"):
            problems.append(f"{node.name} is a {node.op}, not an ATen call")
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if not any(samples_shape(node) is not None and not isinstance(_batch(node), int) for node in inputs):
        problems.append("no input has a dynamic batch axis")
    _require("capture", problems)


def _batch(node: fx.Node) -> Any:
    return node.meta["val"].shape[0]


def check_canonical(module: fx.GraphModule) -> None:
    """Every node that compares carries a site, and site names are unique.

    Raises:
        InvariantError: With every node that breaks it.
    """
    problems, seen = [], set()
    dependent = input_dependent(module.graph.nodes)
    for node in module.graph.nodes:
        number = node_comparisons(node) if node in dependent else 0
        site = node.meta.get(SITE_KEY)
        if number and site is None:
            problems.append(f"{node.name} compares {number} times and has no site")
        if site is not None and site.comparisons != number:
            problems.append(f"{node.name} compares {number} times, its site says {site.comparisons}")
        if site is not None and site.name in seen:
            problems.append(f"the site name {site.name} is used twice")
        seen.add(site.name if site else None)
    _require("canonicalize", problems)


def largest_difference(one: Any, other: Any) -> float:
    """Largest absolute difference between two nested outputs, relative to the largest value of ``other`` if it has any.

    NaN where either is NaN; infinity where their structures or shapes differ.
    """
    left, spec = pytree.tree_flatten(plain_containers(one))
    right, other_spec = pytree.tree_flatten(plain_containers(other))
    if spec != other_spec:
        return float("inf")
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            a, b = a.detach().double(), b.detach().double()
            difference = float((a - b).abs().max()) / (float(b.abs().max()) or 1.0)
            worst = difference if difference != difference else max(worst, difference)
    return worst


def plain_containers(value: Any) -> Any:
    """The same with dicts and lists in place of the immutable ones that torch.fx makes of them."""
    if type(value) in (dict, immutable_dict):
        return {key: plain_containers(item) for key, item in value.items()}
    if type(value) in (list, immutable_list, tuple):
        return (tuple if isinstance(value, tuple) else list)(plain_containers(item) for item in value)
    return value


def _as_exact(module: Callable[..., Any], reference: Callable[..., Any], inputs: ExampleInputs) -> bool:
    """Whether ``module`` is at most 4 times as far from the reference computed in float64 as the reference itself.

    Where a network amplifies rounding, two exact forms of it differ by more than any fixed tolerance. That says nothing
    of a reference that does not agree with itself, nor of one that computes in a dtype of its own choice.
    """
    if not isinstance(module, nn.Module) or not isinstance(reference, nn.Module):
        return False
    exact = copy.deepcopy(reference).double()
    with torch.no_grad():
        try:
            truth = inputs.to(dtype=torch.float64).call(exact)
        except RuntimeError:  # a dtype is written into its code
            return False
        new, old, again = (largest_difference(inputs.call(m), truth) for m in (module, reference, reference))
    return new <= 4 * old and old == again


def check_equal(
    stage: str, module: Callable[..., Any], reference: Callable[..., Any], inputs: ExampleInputs, tolerance: float,
    batches: tuple[int, ...] = (2, 3), sizes: Sequence[FreeSize] = (),
) -> None:  # fmt: skip
    """The module's outputs equal the reference's at several batch sizes.

    Args:
        stage: Name in the message.
        module: What the stage made.
        reference: What it was made from.
        inputs: Example inputs; their samples are cycled.
        tolerance: Largest difference, relative to the largest output.
        batches: Batch sizes; a fixed batch is the only one.
        sizes: Heights and widths that are free: others are tried too.

    Raises:
        InvariantError: They differ.
    """
    problems = []
    examples = [inputs] if inputs.fixed_batch else [inputs.resized(size) for size in batches]
    labels = [f"at batch {example.size}" for example in examples]
    for values in other_sizes(sizes):
        examples.append(at_sizes(examples[0], sizes, values))
        labels.append("at " + ", ".join(f"{name} {size}" for name, size in values.items()))
    for label, example in zip(labels, examples, strict=True):
        with torch.no_grad():
            difference = largest_difference(example.call(module), example.call(reference))
        if not difference <= tolerance and not _as_exact(module, reference, example):
            problems.append(f"{label} outputs differ by {difference:.3g} (allowed: {tolerance:.3g})")
    _require(stage, problems)
