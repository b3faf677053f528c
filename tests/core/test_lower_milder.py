"""Where a pass of the lowering rounds too far, the model is lowered without it, and that is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

import autorep_fx
from autorep_fx.errors import InvariantError, NonFiniteError
from autorep_fx.passes.absorb_affine import AbsorbAffinePass
from autorep_fx.passes.fold_batchnorm import FoldBatchnormPass
from autorep_fx.passes.infra import PassResult
from autorep_fx.passes.inputs import ExampleInputs
from nets import TinyNet, batches, trained_norms


def _one_percent_off(module: fx.GraphModule) -> None:
    """Make the outputs wrong."""
    [output] = [node for node in module.graph.nodes if node.op == "output"]
    [value] = output.all_input_nodes
    with module.graph.inserting_before(output):
        wrong = module.graph.call_function(torch.ops.aten.add.Tensor, (value, value), {"alpha": 0.01})
    wrong.meta = dict(value.meta)
    output.replace_input_with(value, wrong)
    module.recompile()


def _rounded(module: fx.GraphModule) -> None:
    """Add a large number to the outputs and take it away: exact in float64, 0.004 off in float32."""
    [output] = [node for node in module.graph.nodes if node.op == "output"]
    [value] = output.all_input_nodes
    with module.graph.inserting_before(output):
        far = module.graph.call_function(torch.ops.aten.add.Tensor, (value, 1e5))
        near = module.graph.call_function(torch.ops.aten.sub.Tensor, (far, 1e5))
    far.meta, near.meta = dict(value.meta), dict(value.meta)
    output.replace_input_with(value, near)
    module.recompile()


def _weight_rounded(module: fx.GraphModule) -> None:
    """Keep a weight that a pass wrote with 8 bits where it is of float32, and as it is in float64."""
    name = next(name for name, _ in module.named_buffers() if name.startswith("autorep_absorbed."))
    value = module.get_buffer(name)
    if value.dtype == torch.float32:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, value.bfloat16().float())


def _inexact(kind: type, monkeypatch: pytest.MonkeyPatch, fault: Callable[[fx.GraphModule], None]) -> None:
    original = kind.call

    def call(self: object, module: fx.GraphModule) -> PassResult:
        result = original(self, module)
        fault(module)
        return result

    monkeypatch.setattr(kind, "call", call)


def _model() -> tuple[nn.Module, torch.Tensor]:
    x = batches()[0][0]
    return trained_norms(TinyNet(), x), x


@pytest.mark.parametrize("fault", [_rounded, _weight_rounded])
def test_the_model_is_lowered_without_what_rounds_too_far(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[fx.GraphModule], None]
) -> None:
    """Outputs are those of the plain form, and a note names the pass; without a fault there is no such note."""
    model, x = _model()
    plain = autorep_fx.transform(model, "10%", example_inputs=x)
    assert not any("lowered without" in text for text in plain.lowering_notes)
    _inexact(AbsorbAffinePass, monkeypatch, fault)
    found = autorep_fx.transform(model, "10%", example_inputs=x)
    assert any("lowered without absorb_affine," in text for text in found.lowering_notes)
    assert found.comparisons == plain.comparisons
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), plain.module(x), rtol=1e-4, atol=1e-4)


def test_a_pass_that_is_wrong_is_no_matter_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other form hides that: it is an error."""
    model, x = _model()
    _inexact(AbsorbAffinePass, monkeypatch, _one_percent_off)
    with pytest.raises(InvariantError, match="After stage 'lower'"):
        autorep_fx.transform(model, "10%", example_inputs=x)


def test_a_pass_that_is_always_needed_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays wrong is an error, as before."""
    model, x = _model()
    _inexact(FoldBatchnormPass, monkeypatch, _one_percent_off)
    with pytest.raises(InvariantError, match="After stage 'lower'"):
        autorep_fx.transform(model, "10%", example_inputs=x)


def test_polynomials_that_explode_are_an_error_that_names_where() -> None:
    """Not a plan with NaN in it, nor the error of a plot."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(8, 3)
    gated = autorep_fx.prepare(model, "0", example_inputs=x)
    gated.calibrate(ExampleInputs.of(x))
    gated.gates["1"].set_coefficients(torch.full((3, 4), 1e38))
    gated.project()
    with pytest.raises(NonFiniteError, match="What reaches 3 is not finite"):
        autorep_fx.lower(gated)
