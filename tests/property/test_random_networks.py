"""Capture, canonical form and gates of random networks.

Set AUTOREP_PROPERTY_EXAMPLES=300 to try that many new networks instead of the few that are tried every time.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import given

import autorep_fx
from autorep_fx.passes.graphs import sites_of
from autorep_fx.passes.stages import check_canonical, check_captured
from property.checks import examples, leaves, require_equal, train_step
from property.networks import Network
from property.strategies import networks


def _outputs(module: Any, inputs: Any) -> dict[str, Any]:
    with torch.no_grad():
        return {str(i): y for i, y in enumerate(leaves(module(*inputs)))}


@given(networks())
@examples(16)
def test_capture_equals_the_model_in_eval_and_in_training(network: Network) -> None:
    """Outputs bit for bit at two batch sizes; in training gradients, statistics and counters too, over two steps."""
    model = network.build()
    before = copy.deepcopy(model.state_dict())
    captured = autorep_fx.capture(model, network.inputs(4))
    check_captured(captured)
    for size in (2, 5):
        inputs = network.inputs(size, seed=size)
        found, expected = captured(*inputs), model(*inputs)
        assert type(found) is type(expected)
        require_equal(_outputs(captured, inputs), _outputs(model, inputs))
    model.train(), captured.train()
    tolerance = 0.0 if network.rounds_alike(canonical=False) else 1e-5
    for seed in (1, 2):
        inputs = network.inputs(4, seed)
        require_equal(train_step(captured, inputs, seed), train_step(model, inputs, seed), tolerance)
    fresh = network.build().state_dict()
    assert all(torch.equal(before[name], fresh[name]) for name in before)


@given(networks())
@examples(16)
def test_canonical_form_has_a_site_for_every_call_and_nothing_else(network: Network) -> None:
    """Kind, shape, channels and comparisons of each site, in order, as the specification says; outputs unchanged."""
    model, inputs = network.build(), network.inputs(4)
    canonical = autorep_fx.canonicalize(autorep_fx.capture(model, inputs), example_inputs=inputs)
    check_captured(canonical)
    check_canonical(canonical)
    found = [(s.kind, s.comparisons, *(() if s.reason else (s.shape, s.channels))) for s in sites_of(canonical)]
    assert found == [
        (s.kind, s.comparisons, *(() if s.fixed else (s.shape, s.channels))) for s in network.sites()
    ]  # fmt: skip
    require_equal(_outputs(canonical, network.inputs(5, 1)), _outputs(model, network.inputs(5, 1)), 1e-5)
    assert autorep_fx.count_comparisons(canonical) == sum(s.comparisons for s in network.sites())


@given(networks())
@examples(12)
def test_gates_that_keep_everything_change_nothing(network: Network) -> None:
    """Outputs, gradients and statistics are the model's, bit for bit where nothing is written out."""
    model, inputs = network.build(), network.inputs(4)
    gated = autorep_fx.prepare(model, "100%", example_inputs=inputs)
    tolerance = 0.0 if network.rounds_alike(canonical=True) else 1e-4
    require_equal(_outputs(gated, inputs), _outputs(model, inputs), tolerance)
    model.train(), gated.train()
    found = {_original(name): value for name, value in train_step(gated, inputs, 1).items()}
    expected = train_step(model, inputs, 1)
    require_equal(found, expected, tolerance)


def _original(name: str) -> str:
    """The name in the model of what a gated model has in its network."""
    return name.replace("network.", "", 1)
