"""Activations of random networks: every kind in several spellings, and what each costs, written down a second time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["COMPARISONS", "FORMS", "Activation", "ExpectedSite", "Made"]

#: Comparisons per element: one, or two where both sides are clipped. Not read from the product.
COMPARISONS = {
    "relu": 1, "clip": 2, "leaky_relu": 1, "prelu": 1, "elu": 1, "selu": 1, "celu": 1, "silu": 1, "gelu": 1, "mish": 1,
    "hardswish": 2, "hardsigmoid": 2, "sigmoid": 1, "tanh": 1, "softplus": 1,
}  # fmt: skip

Form = Callable[[int], Callable[[Tensor], Tensor]]
Made = dict[Any, Any]


def _function(function: Callable[[Tensor], Tensor]) -> Form:
    return lambda channels: function


#: Kind → spelling → what makes it for a number of channels. The first of a kind does not write in place.
FORMS: dict[str, dict[str, Form]] = {
    "relu": {
        "module": lambda c: nn.ReLU(), "module in place": lambda c: nn.ReLU(inplace=True),
        "torch.relu": _function(torch.relu), "F.relu in place": _function(lambda x: F.relu(x, inplace=True)),
        "relu_": _function(lambda x: x.relu_()), "clamp": _function(lambda x: x.clamp(min=0)),
        "threshold": lambda c: nn.Threshold(0, 0),
    },
    "clip": {
        "hardtanh": lambda c: nn.Hardtanh(-1.0, 2.0), "relu6": lambda c: nn.ReLU6(),
        "relu6 in place": lambda c: nn.ReLU6(inplace=True), "clamp": _function(lambda x: x.clamp(-0.5, 1.5)),
        "clamp_": _function(lambda x: x.clamp_(-0.5, 1.5)),
    },
    "leaky_relu": {
        "module": lambda c: nn.LeakyReLU(), "in place": lambda c: nn.LeakyReLU(0.2, inplace=True),
        "function": _function(lambda x: F.leaky_relu(x, 0.1)),
    },
    "prelu": {"one slope": lambda c: nn.PReLU(), "slope per channel": lambda c: nn.PReLU(c)},
    "elu": {
        "module": lambda c: nn.ELU(), "in place": lambda c: nn.ELU(0.5, inplace=True), "function": _function(F.elu),
    },
    "selu": {"module": lambda c: nn.SELU(), "in place": lambda c: nn.SELU(inplace=True)},
    "celu": {"module": lambda c: nn.CELU(2.0), "in place": lambda c: nn.CELU(inplace=True)},
    "silu": {
        "module": lambda c: nn.SiLU(), "in place": lambda c: nn.SiLU(inplace=True), "function": _function(F.silu),
        "written out": _function(lambda x: x * torch.sigmoid(x)),
    },
    "gelu": {
        "module": lambda c: nn.GELU(), "tanh": lambda c: nn.GELU("tanh"),
        "written out": _function(lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    },
    "mish": {
        "module": lambda c: nn.Mish(), "in place": lambda c: nn.Mish(inplace=True),
        "written out": _function(lambda x: x * torch.tanh(F.softplus(x))),
    },
    "hardswish": {
        "module": lambda c: nn.Hardswish(), "in place": lambda c: nn.Hardswish(inplace=True),
        "written out": _function(lambda x: x * F.relu6(x + 3) / 6),
    },
    "hardsigmoid": {
        "module": lambda c: nn.Hardsigmoid(), "in place": lambda c: nn.Hardsigmoid(inplace=True),
        "written out": _function(lambda x: F.relu6(x + 3) / 6),
    },
    "sigmoid": {
        "module": lambda c: nn.Sigmoid(), "function": _function(torch.sigmoid),
        "sigmoid_": _function(lambda x: x.sigmoid_()),
    },
    "tanh": {"module": lambda c: nn.Tanh(), "tanh_": _function(lambda x: x.tanh_())},
    "softplus": {"module": lambda c: nn.Softplus(), "bent": lambda c: nn.Softplus(2.0, 5.0)},
}  # fmt: skip


@dataclass(frozen=True)
class ExpectedSite:
    """A site that a network must have.

    Attributes:
        kind: Its kind.
        shape: Shape of its output for one sample.
        channels: Its number of channels.
        per_element: Comparisons per element.
        fixed: Whether no gate can remove it.
    """

    kind: str
    shape: tuple[int, ...]
    channels: int
    per_element: int
    fixed: bool = False

    @property
    def comparisons(self) -> int:
        """For one sample."""
        return math.prod(self.shape) * self.per_element

    def unit_costs(self, granularity: str) -> list[int]:
        """What each unit costs."""
        single = self.kind == "max_pool2d" and granularity == "element"  # a pool is gated by channels
        units = {"element": math.prod(self.shape), "channel": self.channels, "site": 1}[
            "channel" if single else granularity
        ]
        return [self.comparisons // units] * units


@dataclass(frozen=True)
class Activation:
    """One call of an activation.

    Attributes:
        kind: Its kind.
        form: Its spelling, a key of :data:`FORMS`.
        shared: Whether one module serves all calls of the network that have this kind and form.
    """

    kind: str
    form: str
    shared: bool = False

    def not_in_place(self) -> Activation:
        """The same kind in a spelling that leaves its input alone."""
        return replace(self, form=next(iter(FORMS[self.kind])))

    def build(self, made: Made, channels: int) -> Callable[[Tensor], Tensor]:
        """The module or function; ``made`` holds what is shared."""
        make = FORMS[self.kind][self.form]
        if not self.shared:
            return make(channels)
        key = (self.kind, self.form, channels if self.form == "slope per channel" else None)
        if key not in made:
            made[key] = make(channels)
        return made[key]

    def site(self, *shape: int, last: bool = False) -> ExpectedSite:
        """The site of a call on ``shape``; ``last`` where the channels are the last axis."""
        last = last and self.form != "slope per channel"
        return ExpectedSite(self.kind, shape, shape[-1] if last else shape[0], COMPARISONS[self.kind])
