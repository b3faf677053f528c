"""Fold batch norm into the linear operation before it."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx

from autorep_fx.passes.captured import cumulative_batch_norm
from autorep_fx.passes.graphs import add_buffer, calls, finish
from autorep_fx.passes.infra import Pass, PassResult

__all__ = ["FoldBatchnormPass"]

aten = torch.ops.aten
# Elements that are in float64 at once.
_AT_ONCE = 2**20
_HOLDER = "autorep_folded"
_LINEAR = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)


class FoldBatchnormPass(Pass):
    r"""Replaces ``batch_norm(conv(x))`` with one convolution, in inference form.

    :math:`\gamma (Wx + b - \mu)/\sqrt{v + \epsilon} + \beta = (sW)x + s(b - \mu) + \beta`,
    :math:`s = \gamma/\sqrt{v + \epsilon}`, computed in float64 and rounded once.

    1. The norm uses running statistics (not batch statistics), and both its statistics and its parameters are the
       model's own tensors.
    2. The linear operation has no other user, and its weight is its own.
    3. A linear layer's output has exactly two axes, so that its channels are the norm's.
    """

    def call(self, module: fx.GraphModule) -> PassResult:
        """Fold every norm that meets the rules."""
        dead: list[fx.Node] = []
        names: Counter[str] = Counter()
        for norm in calls(module, aten.batch_norm.default, cumulative_batch_norm):
            linear = norm.args[0]
            if isinstance(linear, fx.Node) and self._applies(norm, linear):
                self._fold(module, norm, linear, names)
                dead += [linear, norm]
        finish(module, dead)
        if dead:
            module.graph.eliminate_dead_code()
            module.recompile()
        return PassResult(module, modified=bool(dead))

    def _applies(self, norm: fx.Node, linear: fx.Node) -> bool:
        # Rule 1.
        if norm.args[5] is not False or any(a is None for a in norm.args[3:5]):
            return False
        if any(isinstance(a, fx.Node) and a.op != "get_attr" for a in norm.args[1:5]):
            return False
        # Rule 2.
        if linear.target not in _LINEAR or len(linear.users) != 1:
            return False
        if any(isinstance(a, fx.Node) and a.op != "get_attr" for a in linear.args[1:3]):
            return False
        # Rule 3.
        return linear.target is not aten.linear.default or linear.meta["val"].dim() == 2

    def _fold(self, module: fx.GraphModule, norm: fx.Node, linear: fx.Node, taken: Counter[str]) -> None:
        weight = _tensor(module, linear.args[1])
        assert weight is not None
        bias = _value(module, linear.args[2]) if len(linear.args) > 2 else None
        gamma, beta, mean, var = (_value(module, a) for a in norm.args[1:5])
        assert mean is not None
        assert var is not None
        eps = norm.args[7]
        assert isinstance(eps, float)
        scale = (var + eps).rsqrt() * (1.0 if gamma is None else gamma)
        shift = (0.0 if beta is None else beta) + scale * ((0.0 if bias is None else bias) - mean)
        dtype = norm.meta["val"].dtype
        name = str(getattr(linear.args[1], "target", linear.name)).removesuffix(".weight")
        path = f"{_HOLDER}.{_free_name(module, name.replace('.', '_'), taken)}"
        names = (
            add_buffer(module, f"{path}.weight", _scaled(weight, scale, dtype)),
            add_buffer(module, f"{path}.bias", shift.to(dtype)),
        )
        with module.graph.inserting_before(norm):
            new_weight, new_bias = (module.graph.get_attr(n) for n in names)
            assert callable(linear.target)
            folded = module.graph.call_function(
                linear.target, (linear.args[0], new_weight, new_bias, *linear.args[3:]), linear.kwargs
            )
        folded.meta = {**linear.meta, "val": norm.meta["val"]}
        norm.replace_all_uses_with(folded)


def _scaled(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Each row times its scale in float64, some rows at a time: a large weight is never in float64 as a whole."""
    result = torch.empty_like(weight, dtype=dtype)
    rows = max(1, _AT_ONCE // max(1, weight[:1].numel()))
    for part, given, factor in zip(result.split(rows), weight.split(rows), scale.split(rows), strict=True):
        part.copy_(given.double() * factor.view(-1, *[1] * (weight.dim() - 1)))
    return result


def _value(module: fx.GraphModule, argument: object) -> Tensor | None:
    tensor = _tensor(module, argument)
    return None if tensor is None else tensor.double()


def _tensor(module: fx.GraphModule, argument: object) -> Tensor | None:
    if not isinstance(argument, fx.Node):
        return None
    owner, _, name = str(argument.target).rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value.detach()


def _free_name(module: fx.GraphModule, name: str, taken: Counter[str]) -> str:
    """A name that nothing folded has: one weight may be used by several calls, which ``taken`` counts."""
    holder = getattr(module, _HOLDER, None)
    while True:
        taken[name] += 1
        free = name if taken[name] == 1 else f"{name}_{taken[name]}"
        if not hasattr(holder, free):
            return free
