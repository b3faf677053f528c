"""Fold batch norm into the linear operation before it."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx

from autorep_fx.passes.captured import cumulative_batch_norm
from autorep_fx.passes.graphs import add_buffer, calls, finish
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.linear_ops import LinearOp, constant_of, free_name, is_linear, scaled_weight

__all__ = ["FoldBatchnormPass", "norm_affine"]

aten = torch.ops.aten
_HOLDER = "autorep_folded"


class FoldBatchnormPass(Pass):
    r"""Replaces ``batch_norm(conv(x))`` with one convolution, in inference form.

    :math:`\gamma (Wx + b - \mu)/\sqrt{v + \epsilon} + \beta = (sW)x + s(b - \mu) + \beta`,
    :math:`s = \gamma/\sqrt{v + \epsilon}`, computed in float64 and rounded once.

    1. The norm uses running statistics (not batch statistics), and both its statistics and its parameters are the
       model's own tensors.
    2. The linear operation, a convolution of any groups, stride and dilation, a transposed one or a linear layer, has
       no other user, and its weight is its own.
    3. A linear layer's output has exactly two axes, so that its channels are the norm's.

    What is left of a norm elsewhere is a scale and a shift, which :class:`AbsorbAffinePass` moves on.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Fold every norm that meets the rules."""
        dead: list[fx.Node] = []
        names: Counter[str] = Counter()
        for norm in calls(module, aten.batch_norm.default, cumulative_batch_norm):
            linear = norm.args[0]
            affine = norm_affine(module, norm)  # rule 1
            if affine is None or not isinstance(linear, fx.Node) or not _takes(module, linear):
                continue
            self._fold(module, norm, linear, affine, names)
            dead += [linear, norm]
        finish(module, dead)
        if dead:
            module.graph.eliminate_dead_code()
            module.recompile()
        return PassResult(module, modified=bool(dead))

    def _fold(
        self, module: fx.GraphModule, norm: fx.Node, linear: fx.Node, affine: tuple[Tensor, Tensor],
        taken: Counter[str],
    ) -> None:  # fmt: skip
        scale, shift = affine
        operation = LinearOp(module, linear)
        dtype = norm.meta["val"].dtype
        name = str(getattr(linear.args[1], "target", linear.name)).removesuffix(".weight")
        path = free_name(module, _HOLDER, name.replace(".", "_"), taken)
        weight = scaled_weight(
            operation.weight, scale, groups=operation.groups, transposed=operation.transposed, dtype=dtype
        )
        names = (
            add_buffer(module, f"{path}.weight", weight),
            add_buffer(module, f"{path}.bias", (shift + scale * operation.bias).to(dtype)),
        )
        with module.graph.inserting_before(norm):
            new_weight, new_bias = (module.graph.get_attr(n) for n in names)
            assert callable(linear.target)
            folded = module.graph.call_function(
                linear.target, (linear.args[0], new_weight, new_bias, *linear.args[3:]), linear.kwargs
            )
        folded.meta = {**linear.meta, "val": norm.meta["val"]}
        norm.replace_all_uses_with(folded)


def norm_affine(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of a norm with running statistics and tensors of the model's own, float64; None for others."""
    if norm.target not in (aten.batch_norm.default, cumulative_batch_norm) or norm.args[5] is not False:
        return None
    gamma, beta, mean, var = (constant_of(module, value) for value in norm.args[1:5])
    if mean is None or var is None or any(
        value is None and isinstance(given, fx.Node) for value, given in zip((gamma, beta), norm.args[1:3], strict=True)
    ):  # fmt: skip
        return None
    eps = norm.args[7]
    assert isinstance(eps, float)
    scale = (var.double() + eps).rsqrt() * (1.0 if gamma is None else gamma.double())
    return scale, (0.0 if beta is None else beta.double()) - scale * mean.double()


def _takes(module: fx.GraphModule, linear: fx.Node) -> bool:
    # Rule 2.
    if not is_linear(module, linear) or len(linear.users) != 1:
        return False
    # Rule 3.
    return linear.target is not aten.linear.default or linear.meta["val"].dim() == 2
