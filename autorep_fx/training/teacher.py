"""The untouched model as a teacher: its outputs, and what it has at the sites."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.training.gated_model import GatedModel

__all__ = ["SiteTeacher", "WatchedSites", "feature_loss"]


class SiteTeacher(nn.Module):
    """A copy of a gated model that computes the original, and remembers the output of every site.

    Args:
        gated: The model before its weights are trained.
    """

    def __init__(self, gated: GatedModel) -> None:
        super().__init__()
        self.network = copy.deepcopy(gated.network).eval().requires_grad_(False)
        self.outputs: dict[str, Tensor] = {}
        for module in self.network.modules():
            if isinstance(module, GatedActivation):
                module.handler = self._record

    def _record(self, gate: GatedActivation, x: Tensor) -> Tensor:
        result = self.outputs[gate.site.name] = gate.function(x)
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original model's outputs."""
        return self.network(*args, **kwargs)


class WatchedSites:
    """Remembers the outputs of the gates of a model, while it is entered.

    Args:
        gates: The gates by site name.
    """

    def __init__(self, gates: Mapping[str, GatedActivation]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._gates = gates
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        """Begin to remember."""
        for name, gate in self._gates.items():
            if not isinstance(gate, GatedPool):
                self._handles.append(gate.register_forward_hook(self._keeper(name)))
        return self

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, result: Tensor) -> None:
            self.outputs[name] = result

        return keep

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.outputs.clear()


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean over the sites of the squared distance, relative to the teacher's mean square at that site."""
    losses = [
        (value.float() - teacher[name].float()).square().mean() / teacher[name].float().square().mean().clamp(min=1e-12)
        for name, value in student.items()
    ]
    return torch.stack(losses).mean()
