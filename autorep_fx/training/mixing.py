r"""Mixup: samples of a batch mixed in pairs, so that a small set has more to distil from.

With :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` a batch is :math:`\lambda x + (1 - \lambda) x'`, where
:math:`x'` is the batch in reverse, and its task loss :math:`\lambda L(y) + (1 - \lambda) L(y')` (Zhang et al., ICLR
2018). The untouched model says itself what it makes of a mixture, which is why distillation profits most (Beyer et
al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autorep_fx.errors import ConfigError
from autorep_fx.passes.inputs import ExampleInputs

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture:
    """How the samples of a batch are mixed with those of the batch in reverse.

    Attributes:
        share: λ, the share of the sample itself, in [0, 1].
    """

    share: float

    @classmethod
    def draw(cls, alpha: float) -> Self:
        """A share from Beta(α, α) by torch's generator of the CPU; 1, which mixes nothing, for α = 0."""
        return cls(float(torch.distributions.Beta(alpha, alpha).sample()) if alpha else 1.0)

    def inputs(self, inputs: ExampleInputs) -> ExampleInputs:
        """The mixed inputs; tensors that are not batched stay.

        Raises:
            ConfigError: An input holds no floating-point numbers, such as indices of tokens.
        """
        if self.share == 1.0:
            return inputs
        return inputs.map(self._mix)

    def loss(self, loss: Callable[[Any], Tensor], targets: Any) -> Tensor:
        """The task's loss of the mixed samples, of which ``loss`` gives that of targets."""
        if self.share == 1.0:
            return loss(targets)
        reverse = pytree.tree_map_only(Tensor, lambda t: t.flip(0) if t.dim() else t, targets)
        return self.share * loss(targets) + (1 - self.share) * loss(reverse)

    def _mix(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            raise ConfigError(
                "training.mixup mixes inputs of floating-point numbers.",
                received=f"a batched input of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}",
                fix="Leave training.mixup at 0 for this model.",
            )
        return value.lerp(value.flip(0), 1 - self.share)
