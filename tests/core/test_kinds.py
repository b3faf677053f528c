"""Every kind of the table, from its fit to its ONNX file, and a kind that is only an entry in the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import autorep_fx
import independent_counter
from autorep_fx.cost import count_sites
from autorep_fx.cost.fx_count import kind_of, node_comparisons
from autorep_fx.kinds import KINDS, ActivationKind
from autorep_fx.passes.composites import canonical_call
from autorep_fx.polynomials import FitLimits
from autorep_fx.polynomials.site_fit import fit_site

SLOPES = torch.tensor([-0.3, 0.0, 0.1, 0.4, 0.25, 0.8])
EXAMPLES = [(kind, arguments) for kind in KINDS.values() for arguments in kind.examples]


class Branches(nn.Module):
    """One convolution and one activation per output: every example of every kind, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cases = [case for case in EXAMPLES for _ in range(2)]
        self.convs = nn.ModuleList(nn.Conv2d(2, 6, 3, padding=1) for _ in self.cases)
        self.slopes = nn.Parameter(SLOPES.clone())
        self.slope = nn.Parameter(torch.tensor([0.25]))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for i, ((kind, arguments), conv) in enumerate(zip(self.cases, self.convs, strict=True)):
            call = canonical_call(kind, arguments)
            parameters = [(self.slopes, self.slope)[i % 2]] if kind.parameters else []
            outputs.append(call.target(conv(x) * 3, *parameters, *call.args, **call.kwargs))
        return outputs


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    """By kind: comparisons of the gates, the lowered graph, the ONNX file and, independently, the file again.

    Of the two sites of an example one has single elements kept and the other whole channels.
    """
    torch.manual_seed(0)
    gated = autorep_fx.prepare(Branches().eval(), "100%", example_inputs=torch.randn(4, 2, 4, 4))
    gated.calibrate(gated.example)
    expected = dict.fromkeys(KINDS, 0)
    for i, gate in enumerate(gated.gates.values()):
        kept = torch.rand(6, 4, 4) < 0.3 if i % 2 == 0 else torch.tensor([1, 0, 0, 1, 1, 0], dtype=bool).view(6, 1, 1)
        gate.kept.copy_(kept.expand(6, 4, 4))
        expected[gate.site.kind] += int(gate.kept.sum()) * KINDS[gate.site.kind].comparisons
    gated.freeze()
    compiled = autorep_fx.lower(gated)
    x = torch.randn(3, 2, 4, 4)
    for lowered, reference in zip(compiled(x), gated.eval()(x), strict=True):
        torch.testing.assert_close(lowered, reference, rtol=1e-5, atol=1e-5)
    path = tmp_path_factory.mktemp("kinds") / "m.onnx"
    assert compiled.export(path).largest_difference < 1e-5
    lowered = dict.fromkeys(KINDS, 0)
    for node in compiled.module.graph.nodes:
        found = kind_of(node)
        if found is not None:
            lowered[found[0].name] += node_comparisons(node)
    names = [kind.name for kind, _ in EXAMPLES for _ in range(2)]
    files = [independent_counter.by_output(path, names, c(path)) for c in (count_sites, independent_counter.by_node)]
    return [expected, lowered, *files]


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_counts_alike_in_every_form(name: str, counted: list[dict[str, int]]) -> None:
    """At mixed gates: gates = lowered graph = ONNX = the independent counter; outputs agree in all of them."""
    expected, *others = (counts[name] for counts in counted)
    assert 0 < expected < 2 * len(KINDS[name].examples) * 96 * KINDS[name].comparisons
    assert others == [expected] * 3


def dense_fit(function: Callable[[np.ndarray], np.ndarray], mean: float, std: float, degree: int) -> np.ndarray:
    """Coefficients by weighted least squares on 20,001 points of the density: neither closed form nor quadrature."""
    z = np.linspace(-10, 10, 20_001)
    weights = np.exp(-(z**2) / 4)
    basis = np.vander(mean + std * z, degree + 1, increasing=True)
    return np.linalg.lstsq(basis * weights[:, None], function(mean + std * z) * weights, rcond=None)[0]


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(("kind", "arguments"), EXAMPLES, ids=lambda value: str(getattr(value, "name", value)))
def test_each_fit_is_the_least_squares_one(kind: ActivationKind, arguments: tuple[Any, ...], degree: int) -> None:
    """At points up to three deviations from the mean within 1e-5·σ in closed form, within 2e-2·σ by quadrature."""
    call = canonical_call(kind, arguments)
    means, stds = np.array([0.0, 0.7, -1.5]), np.array([1.0, 0.5, 2.0])
    slopes = [SLOPES[:3].double()] if kind.parameters else []
    scalars = tuple(a for a in arguments if isinstance(a, float))
    found = fit_site(
        kind.name, (slopes[0].numpy(),) if slopes else scalars, lambda x: call.target(x, *call.args, **call.kwargs),
        means, stds, degree, FitLimits(sigma_floor=0.0, c2_bound=1e9),
    )  # fmt: skip
    tolerance = 2e-2 if kind.piecewise is None else 1e-5
    for channel, (mean, std) in enumerate(zip(means, stds, strict=True)):

        def function(x: np.ndarray, channel: int = channel) -> np.ndarray:
            slope = [slopes[0][[channel]]] if slopes else []
            return call.target(torch.from_numpy(x), *slope, *call.args, **call.kwargs).numpy()

        x = np.linspace(mean - 3 * std, mean + 3 * std, 25)
        best = np.polynomial.Polynomial(dense_fit(function, mean, std, degree))(x)
        np.testing.assert_allclose(np.polynomial.Polynomial(found[:, channel])(x), best, rtol=0, atol=tolerance * std)


FORMS = ["all kept", "all replaced", "runs of channels", "many runs", "elements"]


@pytest.mark.parametrize(("form", "slopes"), [*((form, 20) for form in FORMS), ("elements", 1)])
def test_a_prelu_keeps_its_slopes_in_every_form(form: str, slopes: int) -> None:
    """Outputs equal the gated module's in float64; each form reads the slopes of what it keeps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 20, 3), nn.PReLU(slopes)).double()
    nn.init.uniform_(model[1].weight, -0.5, 0.9)
    gated = autorep_fx.prepare(model, "100%", example_inputs=torch.randn(4, 1, 5, 5).double())
    gated.calibrate(gated.example)
    channel = torch.arange(20).view(20, 1, 1)
    kept = {
        "all kept": channel >= 0, "all replaced": channel < 0, "runs of channels": (channel > 3) & (channel < 9),
        "many runs": channel % 2 == 0, "elements": torch.rand(20, 3, 3) < 0.2,
    }[form]  # fmt: skip
    gated.gates["1"].kept.copy_(kept.expand(20, 3, 3))
    gated.freeze()
    compiled = autorep_fx.lower(gated)
    assert compiled.comparisons == int(kept.expand(20, 3, 3).sum())
    for batch in (1, 2, 5):
        x = torch.randn(batch, 1, 5, 5).double()
        torch.testing.assert_close(compiled.module(x), gated.eval()(x), rtol=0, atol=1e-12)


def test_the_slopes_of_a_prelu_train_by_their_own_name() -> None:
    """The gate owns no copy that a state dict would hold; gradients are the model's, and fits follow the slopes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.PReLU(3), nn.Flatten(), nn.Linear(27, 2))
    x = torch.randn(8, 1, 5, 5)
    gated = autorep_fx.prepare(model, "50%", example_inputs=x)
    assert not [name for name in gated.state_dict() if "parameter" in name]
    for module in (gated, model):
        module(x).square().sum().backward()
    weight = gated.get_parameter("network.1.weight")
    assert torch.equal(weight.grad, model[1].weight.grad)
    with torch.no_grad():
        weight.copy_(torch.tensor([1.0, 1.0, 0.0]))
    gated.calibrate(gated.example)
    constant, slope, curve = gated.gates["1"].coefficients[:, :2].detach()
    assert torch.equal(constant, torch.zeros(2))  # a slope of 1 makes the activation the identity
    torch.testing.assert_close(slope, torch.ones(2))
    assert torch.equal(curve, torch.zeros(2))
    assert gated.gates["1"].coefficients[2, 2] > 0


def test_a_kind_is_one_entry_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up one is found in three spellings, gated, fitted, lowered, exported and counted in both graphs."""
    entry = ActivationKind(
        "error", "aten.erf.default", 3, "made up", ("Erf",), spellings={"aten.special_erf.default": lambda call: ()}
    )
    monkeypatch.setitem(KINDS, "error", entry)

    class Errors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.special.erf(torch.erf(self.conv(x)) + 1)
            x = 1 - torch.erf(-x)  # the other way round, and one more
            return self.head(x.mean((2, 3)))

    compiled = autorep_fx.transform(Errors(), "30%", example_inputs=torch.randn(4, 2, 6, 6))
    assert [site.kind for site in compiled.sites] == ["error"] * 3
    assert [site.comparisons for site in compiled.sites] == [6 * 4 * 4 * 3] * 3
    checked = compiled.export(tmp_path / "m.onnx")
    assert compiled.comparisons == checked.comparisons == sum(count_sites(tmp_path / "m.onnx").values()) > 0
    assert 0 <= 864 * 0.3 - compiled.comparisons < 3
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert {node.op_type for node in graph.node if node.name in count_sites(tmp_path / "m.onnx")} == {"Erf"}
