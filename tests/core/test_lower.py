"""Lowering: exact op lists and counts per form, equality with the gated module, nothing masked is compared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
import independent_counter
from autorep_fx.cost.fx_count import operator_name
from autorep_fx.errors import NotProjectedError
from nets import TinyNet, batches, trained_norms
from property.structures import STRUCTURES, gated_at_random, spread


def _gated(kept: Tensor, degree: int = 2, granularity: str = "element") -> autorep_fx.GatedModel:
    """One site of shape (4, 3, 3) with the given units kept, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).double()
    gated = autorep_fx.prepare(
        model, "100%", example_inputs=torch.randn(4, 1, 5, 5).double(),
        config={"gates": {"granularity": granularity}, "polynomials": {"degree": degree}},
    )  # fmt: skip
    gated.calibrate(gated.example)
    gated.gates["1"].kept.copy_(kept)
    gated.freeze()
    return gated


def _ops(compiled: autorep_fx.Compiled) -> list[str]:
    names = [operator_name(node) for node in compiled.module.graph.nodes]
    return [name for name in names if name]


ELEMENTS = torch.zeros(4, 3, 3, dtype=torch.bool)
ELEMENTS[0, 0, 0] = ELEMENTS[2, 1, 2] = True
# The scale is in the convolution; the model's output takes the constant too.
SQUARE = ["mul", "add"]

CASES = {
    "all kept": (torch.ones(4, 3, 3, dtype=torch.bool), 2, "element", ["conv2d", "relu"]),
    "all replaced": (torch.zeros(4, 3, 3, dtype=torch.bool), 2, "element", ["conv2d", *SQUARE]),
    "all replaced, linear": (torch.zeros(4, 3, 3, dtype=torch.bool), 1, "element", ["conv2d"]),
    "all replaced, constant": (torch.zeros(4, 3, 3, dtype=torch.bool), 0, "element", ["conv2d", "sym_size", "expand"]),
    "elements": (
        ELEMENTS, 2, "element",
        ["conv2d", "flatten", "unflatten", *SQUARE, "flatten", "sym_size", "expand", "gather", "add", "relu", "mul",
         "scatter", "unflatten"],
    ),
    "whole channels": (
        torch.tensor([True, True, False, False]).view(4, 1, 1), 2, "channel",
        ["conv2d", "slice", "relu", "slice", *SQUARE, "cat"],
    ),
    "elements that make whole channels": (
        torch.tensor([False, True, True, False]).view(4, 1, 1).expand(4, 3, 3), 1, "element",
        ["conv2d", "slice", "slice", "relu", "slice", "cat"],
    ),
    "site": (torch.zeros(1, 1, 1, dtype=torch.bool), 2, "site", ["conv2d", *SQUARE]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_form_has_its_operations_and_equals_the_gated_module(name: str) -> None:
    """Exact operations; float64 outputs within 1e-12 at batches 1, 2 and 5; comparisons = kept elements."""
    kept, degree, granularity, expected = CASES[name]
    gated = _gated(kept, degree, granularity)
    compiled = autorep_fx.lower(gated)
    assert _ops(compiled) == expected
    assert compiled.comparisons == int(kept.expand(4, 3, 3).sum())
    for batch in (1, 2, 5):
        x = torch.randn(batch, 1, 5, 5).double()
        torch.testing.assert_close(compiled.module(x), gated.eval()(x), rtol=0, atol=1e-12)


def test_many_runs_of_channels_are_gathered() -> None:
    """With more runs of equal channels than slices are cheaper for, a gather and its inverse replace the slices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 20, 3), nn.ReLU()).double()
    gated = autorep_fx.prepare(
        model, "100%", example_inputs=torch.randn(2, 1, 5, 5).double(), config={"gates": {"granularity": "channel"}}
    )
    gated.gates["1"].kept.copy_((torch.arange(20) % 2 == 0).view(20, 1, 1))
    gated.freeze()
    compiled = autorep_fx.lower(gated)
    assert Counter(_ops(compiled))["index_select"] == 3
    x = torch.randn(3, 1, 5, 5).double()
    torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-12)
    assert compiled.comparisons == 90


def test_only_kept_elements_reach_a_comparison(tmp_path: Path) -> None:
    """In the ONNX file the one Relu works on (batch, kept), and an independent count finds nothing else."""
    compiled = autorep_fx.lower(_gated(ELEMENTS))
    compiled.export(tmp_path / "m.onnx")
    assert independent_counter.count(tmp_path / "m.onnx") == 2
    relu = next(n for n in compiled.module.graph.nodes if operator_name(n) == "relu")
    assert tuple(relu.meta["val"].shape)[1:] == (2,)


def test_lowering_is_refused_before_projection() -> None:
    """NotProjectedError says what to call."""
    x = torch.randn(4, 1, 8, 8)
    gated = autorep_fx.prepare(trained_norms(TinyNet(), x), "10%", example_inputs=x)
    with pytest.raises(NotProjectedError, match=r"project\(\)"):
        autorep_fx.lower(gated)


def test_lowering_leaves_the_gated_model_as_it_was() -> None:
    """Its state dict does not change, and it can be lowered again to the same plan."""
    x = torch.randn(4, 1, 8, 8)
    gated = autorep_fx.prepare(trained_norms(TinyNet(), x), "10%", example_inputs=x)
    gated.calibrate(batches())
    gated.project()
    before = {name: value.clone() for name, value in gated.state_dict().items()}
    digests = {autorep_fx.lower(gated).plan.digest for _ in range(2)}
    assert len(digests) == 1
    assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items())


def test_a_linear_layer_over_tokens_has_its_channels_last(tmp_path: Path) -> None:
    """For (N, tokens, features) the polynomials are per feature, and channel gates choose features."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.gelu(self.fc(x)))

    x = torch.randn(8, 7, 6)
    compiled = autorep_fx.transform(Tokens(), "40%", example_inputs=x, config={"gates": {"granularity": "channel"}})
    [site] = compiled.plan.sites
    assert (site.coefficients.shape, site.kept.shape, site.comparisons) == ((3, 5), (1, 5), 14)
    compiled.export(tmp_path / "m.onnx")
    assert autorep_fx.count_comparisons(tmp_path / "m.onnx") == 14


@pytest.mark.parametrize("granularity", ["element", "channel"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_lowered_structures_export_with_their_counts(name: str, granularity: str, tmp_path: Path) -> None:
    """In onnxruntime as in torch at every batch; full shape inference passes; an independent count agrees."""
    torch.manual_seed(0)
    model, x = spread(STRUCTURES[name](), 0), torch.randn(4, 3, 8, 8)
    compiled = autorep_fx.lower(gated_at_random(model, x, granularity=granularity))
    compiled.export(tmp_path / "m.onnx")
    assert independent_counter.count(tmp_path / "m.onnx") == compiled.plan.comparisons
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


def test_shifts_of_images_are_exported_as_norms_of_variance_one(tmp_path: Path) -> None:
    """The sum before a padded convolution stays in onnxruntime's blocked layout; a scale before it goes along."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 9, 3, padding=1))
    compiled = autorep_fx.lower(gated_at_random(model, torch.randn(4, 3, 8, 8), share=0.0))
    assert _ops(compiled) == ["conv2d", "mul", "add", "conv2d"]
    compiled.export(tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Mul", "BatchNormalization", "Conv"]
    norm = proto.graph.node[2]
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    scale, shift, mean, variance = (values[name] for name in norm.input[1:])
    assert [a.f for a in norm.attribute if a.name == "epsilon"] == [0.0]
    assert (scale == 1).all()
    assert (variance == 1).all()
    assert not mean.any()
    assert shift.all()


def test_shifts_beside_single_kept_elements_stay_sums(tmp_path: Path) -> None:
    """There the image has left onnxruntime's blocked layout already, and a sum is the faster form."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 9, 3, padding=1))
    gated = gated_at_random(model, torch.randn(4, 3, 8, 8), share=0.2)
    autorep_fx.lower(gated).export(tmp_path / "m.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Mul") == 1  # the squares
    assert operators.count("Add") == 2  # the constant of the squares, and the shift that the kept find their input in


def test_free_heights_and_widths_get_no_constant_per_position() -> None:
    """Where sizes vary, a shift is added before a padded convolution, however few outputs that has."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    ).double()
    config = {"gates": {"granularity": "site"}, "capture": {"dynamic_size": True}}
    gated = autorep_fx.prepare(model, 0, example_inputs=torch.randn(4, 3, 16, 16).double(), config=config)
    gated.calibrate(gated.example)
    gated.project()
    compiled = autorep_fx.lower(gated)
    assert _ops(compiled) == ["conv2d", "mul", "add", "conv2d", "adaptive_avg_pool2d", "flatten", "linear"]
    x = torch.randn(2, 3, 20, 24).double()
    torch.testing.assert_close(compiled.module(x), gated.eval()(x), rtol=0, atol=1e-10)


class _Shared(nn.Module):
    """One computed weight in two layers that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6) / 3)
        self.register_buffer("mask", (torch.arange(36) % 3 > 0).float().view(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return F.linear(F.linear(torch.relu(x), weight), weight)


def test_two_layers_with_one_weight_are_merged() -> None:
    """What a pass registered for both is freed once."""
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    stages = ["capture", "canonicalize", "prepare", "calibrate", "project"]
    lower = {"stage": "lower", "passes": ["fold_constants", "lower_gates", "merge_linear"]}
    model = _Shared()
    compiled = autorep_fx.transform(model, 1.0, example_inputs=x, config={"stages": [*stages, lower, "export"]})
    assert _ops(compiled).count("linear") == 1
    with torch.no_grad():
        torch.testing.assert_close(compiled.module(x), model(x), rtol=0, atol=1e-6)
