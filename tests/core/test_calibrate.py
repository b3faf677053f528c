"""Calibration: in order, with the prefix replaced, finite; scores from the measured output error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import autorep_fx
from autorep_fx.errors import NonFiniteError
from autorep_fx.kinds import KINDS
from autorep_fx.models_zoo import create
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.sensitivity import output_errors
from autorep_fx.polynomials import FitLimits, fit_piecewise
from nets import TinyNet, batches, trained_norms


def _fit(x: torch.Tensor) -> np.ndarray:
    """Degree-2 fit of ReLU to the channels of ``(N, C, ...)``, by the library's closed form."""
    channels = x.transpose(0, 1).flatten(1).double()
    form = KINDS["relu"].piecewise([])
    return fit_piecewise(form, channels.mean(1).numpy(), channels.std(1, correction=0).numpy(), 2, FitLimits())


def test_each_site_is_fitted_on_what_the_replaced_prefix_gives() -> None:
    """The second site's polynomial is the fit to its input behind the first site's polynomial, not behind its ReLU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten())
    x = torch.randn(64, 1, 8, 8)
    gated = autorep_fx.prepare(model, "0%", example_inputs=x)
    gated.calibrate(ExampleInputs.of(x))
    with torch.no_grad():
        first_input = model[0](x)
        c = torch.from_numpy(_fit(first_input)).float().view(3, 3, 1, 1)
        replaced = c[0] + c[1] * first_input + c[2] * first_input.square()
        expected, naive = _fit(model[2](replaced)), _fit(model[2](first_input.relu()))
    found = gated.gates["3"].coefficients.detach().double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(naive - expected).max() > 1e-3  # the two fits do differ, so the test tells them apart


def test_calibration_uses_as_many_samples_as_asked() -> None:
    """`calibration.samples` samples over several batches, and the result says so."""
    x = torch.randn(8, 1, 8, 8)
    gated = autorep_fx.prepare(
        trained_norms(TinyNet(), x), "10%", example_inputs=x, config={"calibration": {"samples": 24}}
    )
    gated.calibrate(batches(count=4, size=16))
    assert gated.sample.size == 24
    assert gated.calibrated_on == "24 training samples"


def test_before_calibration_the_norm_before_a_site_gives_its_fit() -> None:
    """Directly after a batch norm the start is the fit under that norm's scale and shift; elsewhere N(0, 1)."""
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0])), norm.bias.copy_(torch.tensor([1.0, -1.0]))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten())
    gated = autorep_fx.prepare(model, "0%", example_inputs=torch.randn(4, 1, 8, 8))
    form = KINDS["relu"].piecewise([])
    expected = fit_piecewise(form, np.array([1.0, -1.0]), np.array([0.5, 2.0]), 2, FitLimits())
    np.testing.assert_allclose(gated.gates["2"].coefficients.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(gated.gates["4"].coefficients.detach().numpy()[:, 0], [0.19947, 0.5, 0.19947], atol=1e-5)


def test_a_quadratic_that_overflows_becomes_linear_and_is_reported() -> None:
    """Near the end of float32's range a quadratic's overshoot overflows where ReLU does not: it falls back."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(2e38)
    x = torch.zeros(64, 1)
    x[0] = 1.0  # one sample far outside: 8 standard deviations
    compiled = autorep_fx.transform(model, "0%", example_inputs=x)
    assert bool(torch.isfinite(compiled.module(x)).all())
    assert any("fitted with degree 1" in note for note in compiled.notes)
    [site] = compiled.plan.sites
    assert (site.degree, site.fitted_degree) == (2, 1)
    assert "elements kept, degree 1" in repr(compiled.plan)


def test_a_model_whose_own_outputs_are_not_finite_is_refused() -> None:
    """No fallback helps; the error says what to check."""

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x.relu() * 0 - 1)

    with pytest.raises(NonFiniteError, match="The model's own outputs are not finite"):
        autorep_fx.transform(Broken(), "50%", example_inputs=torch.randn(4, 3))


def test_output_errors_are_the_true_ones_where_the_model_is_linear_behind_the_site() -> None:
    """For a linear head the first-order estimate is exact: E|W·d|² per unit, for elements and for channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5))
    x = torch.randn(32, 1, 8, 8)
    for granularity in ("element", "channel"):
        gated = autorep_fx.prepare(model, "50%", example_inputs=x, config={"gates": {"granularity": granularity}})
        gated.calibrate(ExampleInputs.of(x))
        gate = gated.gates["1"]
        found = output_errors(
            gated.network, ExampleInputs.of(x), generator=torch.Generator().manual_seed(0), draws=2000
        )["1"]
        with torch.no_grad():
            inside = model[0](x)
            difference = (gate.function(inside) - gate.polynomial(inside)).flatten(1)
            moves = difference[:, None, :] * model[3].weight  # (N, outputs, elements)
            if granularity == "channel":
                moves = moves.view(32, 5, 3, 36).sum(-1)
            expected = moves.square().sum(1).mean(0)
        torch.testing.assert_close(found.flatten().float(), expected, rtol=0.25, atol=1e-4 * float(expected.max()))


def test_without_training_the_units_that_matter_are_kept() -> None:
    """A channel that the head ignores is replaced first, a channel that it reads is kept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    with torch.no_grad():
        model[3].weight[:, :36] = 0
    compiled = autorep_fx.transform(
        model, "50%", example_inputs=torch.randn(16, 1, 8, 8), config={"gates": {"granularity": "channel"}}
    )
    assert compiled.plan.sites[0].kept.flatten().tolist() == [False, True]
    assert any("nothing was trained" in note for note in compiled.notes)


class SelfGated(nn.Module):
    """A product with a sigmoid of the input's own mean, whose inputs reach far: any line leaves [0, 1] by far."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.head(x * torch.sigmoid(x.pow(5).mean(1, keepdim=True)))


def _self_gated() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    x[0] *= 30
    return SelfGated().eval(), x


def test_a_site_that_no_polynomial_serves_is_kept_within_the_budget() -> None:
    """The sigmoid (1 comparison) is kept for good and noted; the budget stays exact, and a resumed state knows it."""
    model, x = _self_gated()
    gated = autorep_fx.prepare(model, 4, example_inputs=x)
    gated.calibrate(ExampleInputs.of(x))
    gate = gated.gates["sigmoid"]
    assert (gate.fallback, gate.pinned, gate.kept_comparisons) == ("kept", "kept", 1)
    fresh = autorep_fx.prepare(model, 4, example_inputs=x)
    fresh.load_state_dict(gated.state_dict())
    assert fresh.gates["sigmoid"].pinned == "kept"
    compiled = autorep_fx.transform(model, 4, example_inputs=x)
    assert compiled.comparisons == 4
    assert any(note.startswith("sigmoid: kept entirely") for note in compiled.notes)


def test_without_room_it_becomes_linear() -> None:
    """A budget of 3 has no quarter for it."""
    model, x = _self_gated()
    compiled = autorep_fx.transform(model, 3, example_inputs=x)
    assert compiled.comparisons == 3
    assert any(note.startswith("sigmoid: fitted with degree 1") for note in compiled.notes)


def test_validation_data_beyond_the_calibrated_range_is_a_warning() -> None:
    """Samples five times as wide as those fitted on are told, with the worst site; like samples are not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(64, 4)
    for factor, expected in ((1.0, 0), (5.0, 1)):
        data = [(x * factor, torch.zeros(64, dtype=torch.long))]
        compiled = autorep_fx.transform(model, "50%", example_inputs=x, val_data=data)
        found = [text for text in compiled.warnings if "leave the calibrated range" in text]
        assert len(found) == expected
        assert all("1 of 1 sites" in text and "worst: 1, calibrated" in text for text in found)


def test_sites_are_fitted_with_all_kept_where_it_is_asked_for() -> None:
    """Before a training that begins so; fixed choices, which replace at once, are fitted in order all the same."""
    torch.manual_seed(0)
    model = create("digits_resnet").eval()  # untrained norms: fits that overshoot in order
    x = 5 * torch.randn(64, 1, 8, 8)
    data = [(x, torch.zeros(64, dtype=torch.int64))]
    without = autorep_fx.prepare(model, "0%", example_inputs=x)
    without.calibrate(ExampleInputs.of(x))
    config = {"calibration": {"prefix": "kept"}}
    before = autorep_fx.prepare(model, "0%", example_inputs=x, config=config)
    before.calibrate(data)
    assert not before.fallbacks
    seen: dict[str, torch.Tensor] = {}
    for name, gate in before.gates.items():
        gate.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0]}))
    before.eval()
    before.set_gates_to("kept")
    with torch.no_grad():
        before(x)
    for name, gate in before.gates.items():
        mean = seen[name].double().mean((0, 2, 3))
        torch.testing.assert_close(gate.mean, mean, rtol=1e-5, atol=1e-6)
    fixed = autorep_fx.prepare(model, "0%", example_inputs=x, config={**config, "training": {"method": "random"}})
    fixed.calibrate(data)
    last = list(without.gates)[-1]
    torch.testing.assert_close(fixed.gates[last].mean, without.gates[last].mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before.gates[last].mean, without.gates[last].mean, rtol=1e-2)
