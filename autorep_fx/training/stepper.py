"""One optimiser step: forward, backward, clip, update; in any precision, over one or many batches and processes."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.config import ExecutionConfig
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.batches import split_batch
from autorep_fx.training.fabric import share_of
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.phases import Phase
from autorep_fx.training.recompute import recomputing
from autorep_fx.training.schedule import learning_rate
from autorep_fx.training.sync_norms import SyncNorms

__all__ = ["Stepper"]

# Compiling the gates of a network takes 10 to 30 s; below so many steps that does not pay.
_STEPS_TO_COMPILE = 3000


class Stepper:
    """Makes optimiser steps for the phase that was begun.

    Args:
        fabric: Lightning Fabric.
        execution: Precision, memory format, accumulation and compilation.
        steps: Optimiser steps of the whole training, which decide whether compiling the gates pays.
    """

    def __init__(self, fabric: Any, execution: ExecutionConfig, *, steps: int = 0) -> None:
        self.fabric, self.execution, self.steps = fabric, execution, steps
        self.accumulate = execution.accumulate

    def begin(self, phase: Phase) -> None:
        """Move the phase's module to the device, and make its optimiser."""
        self.phase, self._graphs = phase, contextlib.ExitStack()
        module = self.fabric.to_device(phase.module)
        if self.execution.channels_last:
            module.to(memory_format=torch.channels_last)
        for part in module.modules():
            if isinstance(part, GatedActivation):
                part.compiled = self._fuses()
        if isinstance(module, GatedModel):
            self._graphs.enter_context(recomputing(module.network, wanted=self.execution.recompute))
        optimizer = phase.optimizer()
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.parallel = self.fabric.world_size > 1
        if self.parallel:
            self.model, self.optimizer = self.fabric.setup(module, optimizer)
        else:
            self.model, self.optimizer = module, self.fabric.setup_optimizers(optimizer)
        self._call: Any = torch.compile(self.model) if self.execution.compile else self.model

    def _fuses(self) -> bool:
        if self.execution.fuse is not None:
            return self.execution.fuse
        if self.execution.compile or self.steps < _STEPS_TO_COMPILE:
            return False
        if self.fabric.device.type == "cuda":
            return importlib.util.find_spec("triton") is not None
        return shutil.which("g++") is not None

    def end(self) -> None:
        """Let go of optimiser and wrapper, and give the module its own graph back."""
        self._graphs.close()
        for part in self.phase.module.modules():
            if isinstance(part, GatedActivation):
                part.compiled = False
        del self.model, self.optimizer, self._call

    def step(
        self, batches: Sequence[Any], progress: float, *, check: Callable[[Tensor, ExampleInputs], None] | None = None
    ) -> Tensor:
        """One optimiser step on batches; returns their mean loss, detached, on the device.

        Args:
            batches: As many as are accumulated, fewer at the end of an epoch.
            progress: Share of the phase that is done, for the learning rate.
            check: Called with the loss and the last batch before the weights move.
        """
        phase, losses = self.phase, []
        for group in self.optimizer.param_groups:
            start = group["initial_lr"]
            group["lr"] = learning_rate(progress, start, start * phase.final_lr, phase.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(batches):
            inputs, targets, weight = self._on_device(batch)
            weight /= len(batches)
            with self._synchronised(last=index + 1 == len(batches)):
                with self.context():
                    loss = phase.loss(self._call, inputs, targets)
                losses.append(loss.detach())
                if check is not None:
                    check(losses[-1], inputs)
                self.fabric.backward(loss if weight == 1.0 else loss * weight)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=phase.clip, error_if_nonfinite=False)
        self.optimizer.step()
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        return self.fabric.all_reduce(mean, reduce_op="mean") if self.parallel else mean

    @contextlib.contextmanager
    def _synchronised(self, *, last: bool) -> Iterator[None]:
        if self.parallel and not last:
            with self.fabric.no_backward_sync(self.model):
                yield
        else:
            yield

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """The precision of a forward pass, and whether batch norms go by the statistics of all processes or of each."""
        synchronised = self.parallel and self.execution.sync_norms
        with self.fabric.autocast(), SyncNorms() if synchronised else contextlib.nullcontext():
            yield

    def inputs(self, batch: Any) -> ExampleInputs:
        """This process's share of the inputs of a batch, on the device and in the memory format of training."""
        return self._on_device(batch)[0]

    def _on_device(self, batch: Any) -> tuple[ExampleInputs, Any, float]:
        inputs, targets, weight = share_of(*split_batch(batch), self.fabric.global_rank, self.fabric.world_size)
        device = self.fabric.device
        inputs = inputs.to(device=device)
        if self.execution.channels_last:
            inputs = inputs.map(_channels_last)
        return inputs, pytree.tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), targets), weight

    def state(self) -> dict[str, Any]:
        """State of optimiser and precision, for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict(), "precision": self.fabric.strategy.precision.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def move(module: nn.Module, fabric: Any, execution: ExecutionConfig) -> nn.Module:
    """A module that is only called, such as a teacher, on the device of training."""
    module = fabric.to_device(module)
    if execution.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    called: Any = torch.compile(module) if execution.compile else module
    assert callable(called)
    return called  # type: ignore[no-any-return]
