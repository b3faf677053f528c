r"""Batch norm over the samples of all processes, in place of those of each process.

With :math:`\hat x = (x - \mu) / \sqrt{v + \epsilon}` over the :math:`n` values of a channel in all processes,
:math:`\partial L/\partial x = w / \sqrt{v + \epsilon} \cdot (g - \frac{1}{n} \sum g - \frac{\hat x}{n} \sum g \hat x)`,
which takes two numbers per channel from each process. torch's own ``SyncBatchNorm`` is for modules, and on GPUs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

__all__ = ["SyncNorms"]

_BATCH_NORMS = (torch.batch_norm, torch.ops.aten.batch_norm.default)


class SyncNorms(TorchFunctionMode):
    """While it is entered, every batch norm in training uses the values of all processes.

    Calls of modules and of captured graphs mean something else meanwhile, and stay as they are.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Take the place of batch norms in training."""
        given = kwargs or {}
        if function is F.batch_norm:
            return _functional(*args, **given)
        if function in _BATCH_NORMS:
            return _batch_norm(*args, **given)
        return function(*args, **given)


def _functional(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """With the signature of ``torch.nn.functional.batch_norm``."""
    return _batch_norm(x, weight, bias, mean, var, training, momentum, eps, torch.backends.cudnn.enabled)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float, cudnn: bool,
) -> Tensor:  # fmt: skip
    if not training:
        return torch.batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)
    normalised, mean, var, count = _Normalise.apply(x, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
    shape = [-1] + [1] * (x.dim() - 2)
    if weight is not None:
        normalised = normalised * weight.view(shape)
    if bias is not None:
        normalised = normalised + bias.view(shape)
    result: Tensor = normalised.to(x.dtype)
    return result


class _Normalise(torch.autograd.Function):
    """Zero mean and unit variance per channel, in float32 or wider; mean, biased variance and count beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes, shape = [0, *range(2, x.dim())], [-1] + [1] * (x.dim() - 2)
        own = wide.new_tensor([x.numel() // x.shape[1]])
        *total, count = _sum_of_all(torch.cat([wide.sum(axes), own])).split([x.shape[1], 1])
        mean = total[0] / count
        # In a second message, and not from the mean of squares, which loses all digits where the mean is large.
        var = _sum_of_all((wide - mean.view(shape)).square().sum(axes)) / count
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, mean, scale, count)
        ctx.mark_non_differentiable(mean, var, count)
        return (wide - mean.view(shape)) * scale.view(shape), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        g, (x, mean, scale, count) = gradients[0], ctx.saved_tensors
        axes, shape = [0, *range(2, x.dim())], [-1] + [1] * (x.dim() - 2)
        normalised = (x - mean.view(shape)) * scale.view(shape)
        sums = _sum_of_all(torch.stack([g.sum(axes), (g * normalised).sum(axes)])) / count
        own = g - sums[0].view(shape) - normalised * sums[1].view(shape)
        return (own * scale.view(shape)).to(x.dtype), None


def _sum_of_all(value: Tensor) -> Tensor:
    dist.all_reduce(value)
    return value
