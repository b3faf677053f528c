"""Lowering of random networks of every structure is exact in float64, and compares what the plan says."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import autorep_fx
from autorep_fx.passes.stages import largest_difference
from property.checks import examples
from property.networks import Network
from property.strategies import networks
from property.structures import STRUCTURES, gated_at_random, spread

SHARES = (0.0, 0.03, 0.3, 0.8, 1.0)


def require_exact(gated: autorep_fx.GatedModel, inputs: tuple[torch.Tensor, ...]) -> autorep_fx.Compiled:
    """The lowered model equals the gated one to 1e-10 in float64 at other batches too, and its count is the plan's."""
    compiled = autorep_fx.lower(gated)
    with torch.no_grad():
        for size in (1, 3):
            given = [torch.cat([x] * 2)[:size] for x in inputs]
            assert largest_difference(compiled.module(*given), gated(*given)) <= 1e-10
    assert compiled.comparisons == compiled.plan.comparisons
    return compiled


@given(
    st.sampled_from(sorted(STRUCTURES)), st.sampled_from(["element", "channel", "site"]), st.sampled_from(SHARES),
    st.booleans(), st.sampled_from([0, 1, 2, 2, 2]), st.integers(0, 10_000),
)  # fmt: skip
@examples(20)
def test_structures_lower_exactly(
    name: str, granularity: str, share: float, wild: bool, degree: int, seed: int
) -> None:
    """In float64 to 1e-10; polynomials may be ill-conditioned, concave or have no quadratic part in some channels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x = spread(STRUCTURES[name](), seed).double(), torch.randn(4, 3, 8, 8).double()
    if share or name == "grouped":  # behind constants nothing is left to compare, not even by the pooling there
        degree = max(degree, 1)
    gated = gated_at_random(model, x, granularity=granularity, share=share, seed=seed, wild=wild, degree=degree)
    require_exact(gated, (x,))


@given(networks().filter(Network.is_per_sample), st.sampled_from(["element", "channel"]), st.sampled_from(SHARES[1:]))
@examples(8)
def test_networks_of_any_blocks_lower_exactly(network: Network, granularity: str, share: float) -> None:
    """The same for networks that are drawn block by block, with every kind of activation."""
    inputs = tuple(x.double() for x in network.inputs(4))
    config = {"gates": {"granularity": granularity}, "verification": "off"}
    gated = autorep_fx.prepare(network.build().double(), share, example_inputs=inputs, config=config)
    autorep_fx.calibrate(gated, gated.example)
    require_exact(autorep_fx.project(gated).eval(), inputs)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_float32_is_at_most_four_times_as_far_from_float64(name: str, granularity: str) -> None:
    """As the gated model itself, by the largest difference over a batch."""
    torch.manual_seed(1)
    model, x = spread(STRUCTURES[name](), 1), torch.randn(32, 3, 8, 8)
    gated = gated_at_random(model, x, granularity=granularity)
    exact = copy.deepcopy(gated).double()
    compiled = autorep_fx.lower(gated)
    with torch.no_grad():
        truth = exact(x.double())
        new, old = largest_difference(compiled.module(x), truth), largest_difference(gated(x), truth)
    assert new <= 4 * old
