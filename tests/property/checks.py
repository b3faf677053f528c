"""What the property tests measure: outputs, gradients, buffers, and how far two results are apart."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["examples", "largest_attainable", "leaves", "require_as_close", "require_equal", "run_onnx", "train_step"]


def examples(number: int) -> settings:
    """Run the same few examples every time.

    With AUTOREP_PROPERTY_EXAMPLES=300 that many new ones are run, and what fails is shrunk, which takes minutes.
    """
    wanted = os.environ.get("AUTOREP_PROPERTY_EXAMPLES")
    phases = [Phase.generate, Phase.shrink] if wanted else [Phase.generate]
    return settings(
        max_examples=int(wanted) if wanted else number, derandomize=not wanted, deadline=None, database=None,
        print_blob=True, phases=phases, suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def leaves(outputs: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def train_step(module: nn.Module, inputs: Sequence[Tensor], seed: int) -> dict[str, Tensor | None]:
    """Outputs, gradients of inputs and parameters, and buffers of one step in training mode.

    Random operations draw from ``seed``, and so do the weights of the outputs in the loss. Names of what a compiled
    module has beyond the original are in it too.
    """
    module.zero_grad()
    given = [x.clone().requires_grad_() for x in inputs]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = leaves(module(*given))
        sum((y * torch.randn(y.shape)).sum() for y in outputs).backward()
    found: dict[str, Tensor | None] = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    found |= {f"gradient of input {i}": x.grad for i, x in enumerate(given)}
    found |= {f"gradient of {name}": p.grad for name, p in module.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in module.named_buffers()}


def require_equal(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float = 0.0) -> None:
    """Everything expected is found, equal but for ``tolerance`` relative to the largest value of all."""
    scale = max(float(value.double().abs().max()) for value in expected.values() if value is not None)
    for name, wanted in expected.items():
        value = found[name]
        if wanted is None or value is None:
            assert wanted is value, f"{name} is {value}, not {wanted}"
            continue
        assert value.shape == wanted.shape, name
        difference = float((value.double() - wanted.double()).abs().max())
        assert difference <= tolerance * max(1.0, scale), f"{name}: {difference:.3g}"


def require_as_close(found: Sequence[Any], module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Values equal the module's outputs within 1e-4, or are as close to its outputs in float64 as it is itself."""
    with torch.no_grad():
        own = leaves(module(*inputs))
        exact = leaves(copy.deepcopy(module).double()(*(x.double() for x in inputs)))
    assert len(found) == len(own)
    for value, mine, truth in zip(found, own, exact, strict=True):
        value = torch.as_tensor(np.asarray(value)).double()
        assert value.shape == mine.shape
        difference, scale = float((value - mine).abs().max()), float(mine.abs().max())
        rounding = float((mine - truth).abs().max())
        assert difference <= max(1e-4 * scale, 8 * rounding), f"differs by {difference:.3g} of {scale:.3g}"


def run_onnx(path: Path, inputs: Sequence[Tensor]) -> list[Any]:
    """Outputs of an ONNX file in onnxruntime, in order."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


def largest_attainable(costs: Sequence[int], allowed: int) -> int:
    """The largest sum of some of the costs that is at most ``allowed``: every sum, one bit each."""
    sums = 1
    for cost in costs:
        sums |= (sums << cost) & ((1 << (allowed + 1)) - 1)
    return sums.bit_length() - 1
