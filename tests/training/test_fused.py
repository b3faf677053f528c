"""The fused gate: the plain form's values and gradients, with nothing saved but the input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autorep_fx.gates.fused import Bodies, compiled_bodies, gate
from autorep_fx.gates.operation import Operation
from autorep_fx.gates.straight_through import mix

aten = torch.ops.aten
N, SHAPE = 5, (3, 4, 2)
ACTIVATIONS = {
    "relu": Operation.of(aten.relu.default),
    "silu": Operation.of(aten.silu.default),
    "prelu": Operation.of(aten.prelu.default),
}


def _units(granularity: str, axis: int) -> tuple[int, ...]:
    if granularity == "element":
        return SHAPE
    return tuple(size if granularity == "channel" and i == axis - 1 else 1 for i, size in enumerate(SHAPE))


def _setting(
    kind: str, granularity: str, degree: int, axis: int, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor, Tensor]:
    """x, score, coefficients and parameters, which all need a gradient; the state; a gradient of the output."""
    generator = torch.Generator().manual_seed(degree)
    units, channels = _units(granularity, axis), SHAPE[axis - 1]
    x = torch.randn(N, *SHAPE, generator=generator, dtype=dtype)
    x = torch.where(x.abs() < 1e-2, 0.5, x)  # away from the kink, for finite differences
    score, c = (torch.randn(shape, generator=generator, dtype=dtype) for shape in (units, (degree + 1, channels)))
    tensors = [x, score, c]
    if kind == "prelu":  # torch has its slopes on axis 1 only; one for all elsewhere
        tensors.append(torch.rand(channels if axis == 1 else 1, generator=generator, dtype=dtype))
    kept = torch.rand(units, generator=generator) < 0.5
    return [t.requires_grad_() for t in tensors], kept, torch.randn(x.shape, generator=generator, dtype=dtype)


def _plain(operation: Operation, kept: Tensor, axis: int, x: Tensor, score: Tensor, c: Tensor, *more: Tensor) -> Tensor:
    shape = [1] * x.dim()
    shape[axis] = -1
    polynomial = sum((c[k].view(shape) * x**k for k in range(len(c))), torch.zeros_like(x))
    return mix(operation(x, *more), polynomial, kept, score)


def _fused(operation: Operation, kept: Tensor, axis: int, x: Tensor, score: Tensor, c: Tensor, *more: Tensor) -> Tensor:
    bodies = Bodies(operation, axis)
    return gate(x, kept, score, c, axis, (bodies.forward, bodies.backward), *more)


@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("granularity", ["element", "channel", "site"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_plain_form(kind: str, granularity: str, degree: int, axis: int) -> None:
    """In float64, for input, scores, coefficients and the slopes of a PReLU."""
    tensors, kept, g = _setting(kind, granularity, degree, axis)
    found = []
    for form in (_plain, _fused):
        result = form(ACTIVATIONS[kind], kept, axis, *tensors)
        found.append([result, *torch.autograd.grad(result, tensors, g)])
    for plain, fused in zip(*found, strict=True):
        assert fused.shape == plain.shape
        torch.testing.assert_close(fused, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradients_are_those_of_finite_differences(kind: str, degree: int) -> None:
    """For all but the scores, whose gradient is an estimator."""
    (x, score, *others), kept, _ = _setting(kind, "element", degree, 1)

    def function(x: Tensor, *others: Tensor) -> Tensor:
        return _fused(ACTIVATIONS[kind], kept, 1, x, score.detach(), *others)

    assert torch.autograd.gradcheck(function, (x, *others))


def test_where_everything_is_kept_it_is_the_activation_to_the_bit() -> None:
    """Output and gradient of the input."""
    (x, score, c), _, g = _setting("silu", "element", 2, 1, torch.float32)
    result = _fused(ACTIVATIONS["silu"], torch.ones(SHAPE, dtype=torch.bool), 1, x, score, c)
    expected = torch.nn.functional.silu(x)
    assert torch.equal(result, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, g)[0] for y in (result, expected)))


def _bytes_saved(function: Callable[..., Tensor], *args: Any) -> int:
    """Bytes of the distinct tensors that are saved for the backward pass."""
    saved: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        saved[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        function(*args)
    return sum(value.untyped_storage().nbytes() for value in saved.values())


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_only_the_input_is_saved(kind: str) -> None:
    """Beside what has no batch axis; the plain form saves several times as much."""
    tensors, kept, _ = _setting(kind, "element", 2, 1)
    arguments = ACTIVATIONS[kind], kept, 1, *tensors
    without_batch = kept.nbytes + sum(tensor.nbytes for tensor in tensors[1:])
    assert _bytes_saved(_fused, *arguments) == tensors[0].nbytes + without_batch
    assert _bytes_saved(_plain, *arguments) > 3 * tensors[0].nbytes


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
# torch's compiler imports parts of torch that warn about themselves.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_bodies_compute_the_same() -> None:
    """In float32 up to rounding."""
    operation = ACTIVATIONS["silu"]
    tensors, kept, g = _setting("silu", "element", 2, 1, torch.float32)
    x, score, c = tensors
    results = [
        _fused(operation, kept, 1, *tensors),
        gate(x, kept, score, c, 1, compiled_bodies(operation, 1, SHAPE)),
    ]
    eager, compiled = ([result, *torch.autograd.grad(result, tensors, g)] for result in results)
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_as_many_shapes_are_compiled_as_there_are() -> None:
    """Dynamo gives up after a number of compilations of one function: none is used up by another shape."""
    operation, shapes = ACTIVATIONS["relu"], [(2, 3), (2, 5), (2, 7)]
    compiled_bodies.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for shape in shapes:
            x = torch.randn(4, *shape, requires_grad=True)
            kept, score = torch.ones(shape, dtype=torch.bool), torch.ones(shape)
            gate(x, kept, score, torch.zeros(3, 2), 1, compiled_bodies(operation, 1, shape)).sum().backward()
            assert torch.equal(x.grad, (x > 0).float())


def test_a_half_precision_input_stays_one() -> None:
    """bfloat16 in, bfloat16 out; the gradients of scores and coefficients stay in float32, and are summed there."""
    tensors, kept, g = _setting("relu", "element", 2, 1, torch.float32)
    x = tensors[0].detach().bfloat16().requires_grad_()
    result = _fused(ACTIVATIONS["relu"], kept, 1, x, *tensors[1:])
    to_x, to_score, to_c = torch.autograd.grad(result, (x, *tensors[1:]), g.bfloat16())
    assert result.dtype == to_x.dtype == torch.bfloat16
    assert to_score.dtype == to_c.dtype == torch.float32
    wide = _plain(ACTIVATIONS["relu"], kept, 1, x.float(), *tensors[1:])
    torch.testing.assert_close(result.float(), wide, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(to_c, torch.autograd.grad(wide, tensors[2], g)[0], rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("granularity", ["element", "channel", "site"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_channels_last_stays(kind: str, granularity: str) -> None:
    """Output and gradient have the memory format of the input."""
    tensors, kept, g = _setting(kind, granularity, 2, 1, torch.float32)
    x = tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    result = _fused(ACTIVATIONS[kind], kept, 1, x, *tensors[1:])
    [to_x] = torch.autograd.grad(result, x, g.contiguous(memory_format=torch.channels_last))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert to_x.is_contiguous(memory_format=torch.channels_last)
