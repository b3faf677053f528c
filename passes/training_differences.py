"""What a captured module does otherwise than the model in training, where it is captured in eval mode."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from autorep_fx.errors import InvariantError
from autorep_fx.passes.captured import TRAINING_ARGUMENT, CapturedModule
from autorep_fx.passes.graphs import calls
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.stages import largest_difference, tolerance_of

__all__ = ["training_differences"]

# Attributes by which modules that drop whole branches hold their probability (torchvision, timm, Hugging Face).
_PROBABILITIES = ("drop_prob", "p", "drop_rate")
_DROPOUTS = {
    torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
    nn.functional.dropout, nn.functional.dropout1d, nn.functional.dropout2d, nn.functional.dropout3d,
    nn.functional.alpha_dropout, nn.functional.feature_alpha_dropout,
}  # fmt: skip


def training_differences(model: nn.Module, captured: CapturedModule, inputs: ExampleInputs) -> list[str]:
    """Compare the two in train mode, everything random switched off; both are copied.

    1. Modules that drop branches at random are named: in eval mode they do nothing, so the captured graph has none.
    2. So are attention dropout, outputs of another structure (auxiliary heads), and outputs of another value.
    3. Where outputs agree, so must running statistics.

    Args:
        model: The model.
        captured: What was captured of it.
        inputs: Samples.

    Raises:
        InvariantError: Outputs agree and running statistics do not.
    """
    found = _branch_dropouts(model)
    theirs, ours = copy.deepcopy(model).train(), copy.deepcopy(captured).train()
    _switch_off(theirs, ours)
    example = inputs.resized(max(2, inputs.size))
    with torch.no_grad(), torch.random.fork_rng(), _NoDropout() as seen:
        try:
            expected = example.call(theirs)
        except Exception as error:
            return [*found, f"the model itself fails in train mode: {type(error).__name__}: {error}"]
        outputs = example.call(ours)
    if seen.attention:
        found.append(f"dropout inside {seen.attention} attention calls is off in training")
    difference = largest_difference(outputs, expected)
    if difference == float("inf"):
        return [*found, f"in train mode the model returns {_structure(expected)}, captured is {_structure(outputs)}"]
    if not difference <= tolerance_of(ours):
        return [*found, f"in train mode outputs differ by {difference:.2g} of their scale: the model takes another way"]
    _check_statistics(theirs, ours)
    return found


def _branch_dropouts(model: nn.Module) -> list[str]:
    """Modules that drop paths with a probability above 0."""
    rows = [
        (name, type(module).__name__, float(getattr(module, attribute)))
        for name, module in model.named_modules()
        if "droppath" in type(module).__name__.lower() or "stochasticdepth" in type(module).__name__.lower()
        for attribute in _PROBABILITIES
        if isinstance(getattr(module, attribute, None), (int, float)) and getattr(module, attribute) > 0
    ]
    if not rows:
        return []
    name, kind, probability = rows[-1]
    return [f"{len(rows)} {kind} modules (the last is {name}, p = {probability:.2g}) are off in training"]


def _switch_off(model: nn.Module, captured: fx.GraphModule) -> None:
    """Give everything that drops at random the probability 0."""
    for module in model.modules():
        if any(word in type(module).__name__.lower() for word in ("drop", "stochasticdepth")):
            for attribute in _PROBABILITIES:
                if isinstance(getattr(module, attribute, None), (int, float)):
                    setattr(module, attribute, 0.0)
    for node in calls(captured, *(target for target in TRAINING_ARGUMENT if "dropout" in str(target))):
        node.update_arg(1, 0.0)
    captured.recompile()


class _NoDropout(TorchFunctionMode):
    """Calls of dropout return their input; those inside attention are counted.

    Attributes:
        attention: Attention calls that asked for dropout.
    """

    attention = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is nn.functional.scaled_dot_product_attention:
            position, name = 4, "dropout_p"
            probability = args[position] if len(args) > position else kwargs.get(name, 0.0)
            self.attention += probability > 0
            args = (*args[:position], 0.0, *args[position + 1 :]) if len(args) > position else args
            kwargs = kwargs if len(args) > position else {**kwargs, name: 0.0}
        return func(*args, **kwargs)


def _check_statistics(theirs: nn.Module, ours: CapturedModule) -> None:
    own = dict(ours.named_buffers())
    wrong = [
        name for name, value in theirs.named_buffers()
        if name in own and not largest_difference(own[name], value) <= tolerance_of(ours)
    ]  # fmt: skip
    if wrong:
        raise InvariantError(
            f"After stage 'capture' a training step updates these buffers otherwise than the model: {', '.join(wrong)}",
            fix="Update running statistics in nn.BatchNorm layers alone; or set verification: structure, which leaves "
            "this check out, if no training follows. With plain layers this is a defect: report it with the model.",
        )


def _structure(value: Any) -> str:
    leaves, spec = pytree.tree_flatten(value)
    shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves]
    kind = type(value).__name__ if not spec.is_leaf() else "a tensor"
    return f"{kind} with {', '.join(map(str, shapes))}"
