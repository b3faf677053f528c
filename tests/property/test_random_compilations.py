"""Random networks compiled to random budgets: the exactness rule, and torch = lowered = onnxruntime.

Set AUTOREP_PROPERTY_EXAMPLES=300 to try that many new networks instead of the few that are tried every time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given

import autorep_fx
import independent_counter
from property.activations import ExpectedSite
from property.checks import examples, largest_attainable, leaves, require_as_close, run_onnx
from property.networks import Network
from property.strategies import Choices, choices, networks


def _modes(network: Network, choices: Choices) -> list[tuple[ExpectedSite, str]]:
    """Each site with its mode, ``fixed`` where no gate can be."""
    result, position = [], 0
    for site in network.sites():
        fixed = site.fixed and not (choices.pools and site.kind == "max_pool2d")
        result.append((site, "fixed" if fixed else choices.modes[position % len(choices.modes)]))
        position += not fixed
    return result


def _prepared(network: Network, choices: Choices, **options: Any) -> autorep_fx.GatedModel:
    """The network with gates, for the share of the comparisons that ``choices`` names."""
    inputs, modes = network.inputs(8), _modes(network, choices)
    gates = {"granularity": choices.granularity, "pools": choices.pools, **options}
    polynomials, outputs = {"degree": choices.degree}, {"onnx": False, "report": False}
    config: dict[str, Any] = {"gates": gates, "polynomials": polynomials, "outputs": outputs}
    names = [site.name for site in autorep_fx.inspect(network.build(), inputs).sites]
    config["sites"] = {
        name: {"mode": mode} for name, (_, mode) in zip(names, modes, strict=True) if mode not in ("fixed", "gate")
    }
    return autorep_fx.prepare(network.build(), _budget(modes, choices.share), example_inputs=inputs, config=config)


def _budget(modes: list[tuple[ExpectedSite, str]], share: float) -> int:
    """What stays in any case, and a share of the rest."""
    floor = sum(site.comparisons for site, mode in modes if mode in ("fixed", "ignore", "keep"))
    return floor + int(share * sum(site.comparisons for site, mode in modes if mode in ("gate", "replace")))


@given(networks(), choices(degrees=(0, 1, 2)))
@examples(14)
def test_projection_follows_the_exactness_rule(network: Network, choices: Choices) -> None:
    """Never above; equal wherever some selection of units is; else less is left than any unit left out costs."""
    gated = _prepared(network, choices, init="random")
    autorep_fx.project(gated)
    modes = _modes(network, choices)
    kept = sum(site.comparisons for site, mode in modes if mode == "keep")
    floor = kept + sum(site.comparisons for site, mode in modes if mode in ("fixed", "ignore"))
    rest = _budget(modes, choices.share) - floor
    costs = [cost for site, mode in modes if mode == "gate" for cost in site.unit_costs(choices.granularity)]
    spent = gated.kept - kept
    assert 0 <= spent <= rest
    if largest_attainable(costs, rest) == rest:
        assert spent == rest
    left_out = [
        gate.unit_cost for gate in gated.gates.values() if gate.pinned is None and not bool(gate.kept.all())
    ]  # fmt: skip
    assert not left_out or rest - spent < min(left_out)
    assert gated.unspent == rest - spent


@given(networks().filter(Network.is_per_sample), choices())
@examples(5)
def test_torch_the_lowered_graph_and_onnxruntime_agree(network: Network, choices: Choices) -> None:
    """Outputs at batches 1, 2, 3 and 7, and the counts of plan, graph and file, by two counters."""
    gated = _prepared(network, choices)
    autorep_fx.calibrate(gated, gated.example)
    compiled = autorep_fx.lower(autorep_fx.project(gated))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        verification = compiled.export(path)
        counts = {compiled.comparisons, verification.comparisons, independent_counter.count(path)}
        assert counts == {compiled.plan.comparisons}
        gated.eval()
        for size in (1, 2, 3, 7):
            inputs = network.inputs(size, seed=size)
            with torch.no_grad():
                require_as_close(leaves(compiled(*inputs)), gated, inputs)
            require_as_close(run_onnx(path, inputs), gated, inputs)


@given(networks().filter(Network.is_per_sample))
@examples(4)
def test_a_budget_of_everything_is_the_identity(network: Network) -> None:
    """The compiled model and its file have the model's outputs and comparisons."""
    model, inputs = network.build(), network.inputs(4)
    compiled = autorep_fx.transform(model, 1.0, example_inputs=inputs)
    total = sum(site.comparisons for site in network.sites())
    assert (compiled.comparisons, compiled.original_comparisons, compiled.unspent) == (total, total, 0)
    for size in (2, 5):
        fresh = network.inputs(size, seed=size)
        with torch.no_grad():
            for found, expected in zip(leaves(compiled(*fresh)), leaves(model(*fresh)), strict=True):
                scale = max(1.0, float(expected.abs().max()))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        assert compiled.export(path).comparisons == independent_counter.count(path) == total


@given(networks(), choices())
@examples(7)
def test_a_saved_result_applies_to_a_fresh_model(network: Network, choices: Choices) -> None:
    """Outputs and counts after loading into a model of the same class with other weights are those before."""
    gated = _prepared(network, choices)
    autorep_fx.calibrate(gated, gated.example)
    compiled = autorep_fx.lower(autorep_fx.project(gated))
    with tempfile.TemporaryDirectory() as folder:
        compiled.save(folder)
        loaded = autorep_fx.load(folder, network.build(network.seed + 1), example_inputs=network.inputs(3))
    assert loaded.comparisons == compiled.comparisons
    for found, expected in zip(leaves(loaded(*gated.example.args)), leaves(compiled(*gated.example.args)), strict=True):
        assert torch.equal(found, expected)
