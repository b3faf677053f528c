"""The mixing of kept and replaced elements, and the gradient that reaches the scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autorep_fx.gates.straight_through import binary_state, mix

SHAPES = {"element": (3, 4, 5), "channel": (3, 1, 1), "site": (1, 1, 1), "scalar": ()}


def setting(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An activation, a polynomial, a mask with both values, scores, and an output gradient."""
    generator = torch.Generator().manual_seed(0)
    activation, polynomial, gradient = torch.randn(3, 2, 3, 4, 5, generator=generator, dtype=dtype)
    score = torch.randn(shape, generator=generator, dtype=dtype)
    kept = torch.rand(shape, generator=generator) < 0.5
    return activation, polynomial, kept, score, gradient


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("invert", [False, True])
def test_forward_takes_one_or_the_other(shape: tuple[int, ...], invert: bool) -> None:
    """Each element is exactly the activation's where kept and exactly the polynomial's elsewhere."""
    activation, polynomial, kept, score, _ = setting(shape)
    kept = ~kept if invert else kept
    output = mix(activation, polynomial, kept, score)
    everywhere = kept.expand(3, 4, 5).expand(2, 3, 4, 5)
    assert torch.equal(output[everywhere], activation[everywhere])
    assert torch.equal(output[~everywhere], polynomial[~everywhere])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_gradient_is_the_formula(shape: tuple[int, ...]) -> None:
    """dL/ds = softplus(s) · Σ dL/dy·(a − p) over what one score decides; a and p get theirs where they are used."""
    activation, polynomial, kept, score, gradient = setting(shape)
    leaves = [t.requires_grad_() for t in (activation, polynomial, score)]
    to_activation, to_polynomial, to_score = torch.autograd.grad(
        mix(activation, polynomial, kept, score), leaves, gradient
    )
    state = kept.double().expand(3, 4, 5)
    assert torch.equal(to_activation, gradient * state)
    assert torch.equal(to_polynomial, gradient * (1 - state))
    influence = (gradient * (activation - polynomial)).detach()
    axes = {"element": (0,), "channel": (0, 2, 3)}
    [name] = [name for name, value in SHAPES.items() if value == shape]
    total = influence.sum(axes.get(name, (0, 1, 2, 3))).reshape(shape)
    torch.testing.assert_close(to_score, total * torch.log1p(score.exp()).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_kept_changes_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Output and gradient are bit-equal to the activation's, even where the polynomial is not finite."""
    x = setting(shape, dtype)[0].requires_grad_()
    _, _, kept, score, gradient = setting(shape, dtype)
    output = mix(x.relu(), torch.full_like(x, float("nan")), torch.ones_like(kept), score)
    [found] = torch.autograd.grad(output, x, gradient)
    [expected] = torch.autograd.grad(x.relu(), x, gradient)
    assert torch.equal(output, x.relu())
    assert torch.equal(found, expected)


def test_none_kept_is_the_polynomial() -> None:
    """Nothing of the activation is left in output or gradient."""
    activation, polynomial, kept, score, gradient = setting((3, 4, 5))
    activation.requires_grad_()
    output = mix(activation, polynomial.requires_grad_(), torch.zeros_like(kept), score)
    to_activation, to_polynomial = torch.autograd.grad(output, (activation, polynomial), gradient)
    assert torch.equal(output, polynomial)
    assert not to_activation.any()
    assert torch.equal(to_polynomial, gradient)


def test_a_replaced_element_pulls_its_score_as_a_kept_one_does() -> None:
    """The straight-through gradient does not depend on the state, so that a replaced gate can come back."""
    activation, polynomial, kept, score, gradient = setting((3, 4, 5))
    score.requires_grad_()
    grads = [torch.autograd.grad(mix(activation, polynomial, k, score), score, gradient)[0] for k in (kept, ~kept)]
    assert torch.equal(*grads)
    assert grads[0].all()


def test_scores_that_need_no_gradient_get_none() -> None:
    """Frozen gates: the gradient of the values still flows."""
    activation, polynomial, kept, score, gradient = setting((3, 4, 5))
    activation.requires_grad_()
    mix(activation, polynomial, kept, score).backward(gradient)
    assert score.grad is None
    assert activation.grad is not None
    assert activation.grad.any()


@pytest.mark.parametrize("value", [-30.0, -3.0, 0.0, 0.5, 30.0])
def test_the_factor_of_the_state_is_softplus(value: float) -> None:
    """D binary_state/ds = log(1 + e^s) whatever the state, which is 0 or 1 in the dtype of the score."""
    score = torch.full((4,), value, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([True, False, True, False])
    state = binary_state(score, kept)
    assert state.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert state.dtype == torch.float64
    weights = torch.tensor([1.0, 2.0, -3.0, 0.0], dtype=torch.float64)
    [gradient] = torch.autograd.grad(state, score, weights)
    factor = torch.log1p(torch.tensor(value, dtype=torch.float64).exp())
    torch.testing.assert_close(gradient, weights * factor, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(factor, F.softplus(score.detach()[0]), rtol=1e-8, atol=1e-12)
