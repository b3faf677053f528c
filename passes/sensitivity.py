r"""How much the outputs change when a unit is replaced: a first-order estimate from a few backward passes.

With :math:`d = a(x) - p(x)` the difference at a site and :math:`J` the derivative of the model's outputs with
respect to that site's output, replacing a unit ``u`` moves the outputs by about :math:`\sum_{i \in u} J_i d_i`. For
random signs ``v``, :math:`E_v[(v^T \sum J_i d_i)^2]` is the squared length of that move; it is averaged over
the samples and a few draws of ``v``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autorep_fx.errors import NonFiniteError
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.insert_gates import gates_of

__all__ = ["output_errors"]


def output_errors(
    module: fx.GraphModule, inputs: ExampleInputs, *, generator: torch.Generator, draws: int = 4
) -> dict[str, Tensor]:
    """Estimated squared change of the outputs per unit, by site name; same shape as the gates' state.

    Args:
        module: A gated graph with everything kept, in eval mode.
        inputs: Samples to estimate on.
        generator: CPU generator of the random signs.
        draws: Number of random sign vectors; each costs one backward pass.

    Raises:
        NonFiniteError: An estimate is not finite.
    """
    gates = gates_of(module)
    differences: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(gate: GatedActivation, args: tuple[Any, ...], result: Tensor) -> None:
        x = args[0].detach()
        with torch.no_grad():
            differences[gate.site.name] = gate.function(x) - gate.polynomial(x)
        outputs[gate.site.name] = result

    handles = [gate.register_forward_hook(record) for gate in gates.values()]
    try:
        with torch.enable_grad():
            leaves = [y for y in pytree.tree_leaves(inputs.call(module)) if _differentiable(y)]
    finally:
        for handle in handles:
            handle.remove()
    errors = {name: torch.zeros_like(gate.kept, dtype=torch.float64) for name, gate in gates.items()}
    for draw in range(draws):
        gradients = torch.autograd.grad(
            leaves, list(outputs.values()), [_signs(leaf, generator) for leaf in leaves],
            retain_graph=draw + 1 < draws, allow_unused=True,
        )  # fmt: skip
        for name, gradient in zip(outputs, gradients, strict=True):
            if gradient is not None:
                errors[name] += _per_unit(gradient * differences[name], gates[name]) / draws
    for name, error in errors.items():
        if not bool(torch.isfinite(error).all()):
            raise NonFiniteError(
                f"The estimated output error of site {name} is not finite.",
                fix="Check the model's outputs and gradients on the example inputs.",
            )
    return errors


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return signs.to(like)


def _per_unit(change: Tensor, gate: GatedActivation) -> Tensor:
    """Square of the change summed over each unit, averaged over the samples; ``change`` is ``(N, *shape)``."""
    change = change.double()
    shape = gate.kept.shape
    per_sample = change.sum_to_size((change.shape[0], *shape)) if change.shape[1:] != shape else change
    return per_sample.square().mean(0)
