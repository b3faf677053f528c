"""Files for onnxruntime alone: kept channels without slices, with the same function and the same counts."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import autorep_fx
from autorep_fx.budget import Budget
from autorep_fx.cost.onnx_count import load_model
from autorep_fx.cost.primitives import secure_work
from autorep_fx.errors import ConfigError, ModelFileError
from autorep_fx.export.kept_channels import with_kept_channels_in_blocks
from autorep_fx.export.verify import verify
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.graphs import shared_copy
from autorep_fx.runtime import Session
from nets import trained_norms

SAMPLES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Two blocks of 16 channels: sites behind a convolution alone, and behind a sum that is read twice."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), activation())
        self.one, self.two = (
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), activation(),
                nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels),
            )
            for _ in range(2)
        )  # fmt: skip
        self.after_one, self.after_two = activation(), activation()
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.after_one(self.one(x) + x)
        x = self.after_two(self.two(x) + x)
        return self.head(x.mean((2, 3)))


def compiled(
    kept: int, model: nn.Module | None = None, *, coefficients: tuple[float, ...] = (0.2, 0.5, 0.08),
    granularity: str = "channel", dtype: torch.dtype = torch.float32,
) -> autorep_fx.Compiled:  # fmt: skip
    """A network with so many channels kept at every site, drawn at random."""
    torch.manual_seed(0)
    model = trained_norms(Residual() if model is None else model, SAMPLES).to(dtype)
    share = (kept + 0.01) / next(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    settings = {
        "gates": {"granularity": granularity}, "polynomials": {"degree": len(coefficients) - 1},
        "sites": {"*": {"budget": share}},
    }  # fmt: skip
    gated = autorep_fx.prepare(model, share, example_inputs=SAMPLES.to(dtype), config=settings)
    generator = torch.Generator().manual_seed(3)
    for gate in gated.gates.values():
        gate.score.data.copy_(torch.rand(gate.score.shape, generator=generator))
        gate.set_coefficients(torch.tensor(coefficients)[:, None].expand(-1, gate.site.channels).contiguous())
    autorep_fx.project(gated)
    return autorep_fx.lower(gated)


@pytest.fixture(scope="module")
def two_kept() -> autorep_fx.Compiled:
    """Two of 16 channels."""
    return compiled(2)


def operators(path: Path) -> Counter[str]:
    """Nodes of a file by operator."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def rewritten(module: CapturedModule) -> CapturedModule:
    """A copy in the form for onnxruntime."""
    result = shared_copy(module)
    with_kept_channels_in_blocks(result)
    return result


def test_kept_channels_are_picked_and_put_back_and_nothing_is_sliced(
    two_kept: autorep_fx.Compiled, tmp_path: Path
) -> None:
    """Five sites: two convolutions each, and a subtraction behind the two sums. Counts and outputs stay."""
    found = two_kept
    verified = found.export(tmp_path / "any.onnx"), found.export(tmp_path / "ort.onnx", target="onnxruntime-cpu")
    plain, blocked = operators(tmp_path / "any.onnx"), operators(tmp_path / "ort.onnx")
    assert plain["Slice"] >= 10 and plain["Concat"] == 5
    assert (blocked["Slice"], blocked["Concat"], blocked["Split"]) == (0, 0, 0)
    assert blocked["Conv"] == plain["Conv"] + 10
    assert (blocked["Relu"], blocked["Sub"]) == (plain["Relu"], 2)
    assert {v.comparisons for v in verified} == {2 * 64 * 5} == {found.comparisons}
    outputs = [Session(tmp_path / f"{name}.onnx", device="cpu")(SAMPLES.numpy()) for name in ("any", "ort")]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-5)
    assert verify(tmp_path / "ort.onnx").comparisons == found.comparisons


def test_onnxruntime_leaves_its_blocks_less_often(two_kept: autorep_fx.Compiled, tmp_path: Path) -> None:
    """What the form is for: fewer conversions of layout in the graph that onnxruntime runs."""
    reorders = {}
    for target in ("any", "onnxruntime-cpu"):
        two_kept.export(tmp_path / f"{target}.onnx", target=target)  # type: ignore[arg-type]
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{target}-run.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(tmp_path / f"{target}.onnx"), options, providers=["CPUExecutionProvider"])
        reorders[target] = operators(tmp_path / f"{target}-run.onnx")["ReorderInput"]
    if not any(reorders.values()):
        pytest.skip("onnxruntime has no blocked layout on this machine")
    assert reorders["any"] >= 4 and reorders["onnxruntime-cpu"] == 0


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.Hardswish, nn.GELU, nn.ReLU6])
@pytest.mark.parametrize("coefficients", [(0.2, 0.5, 0.08), (0.3, 0.5)], ids=["quadratic", "linear"])
def test_the_form_is_exact(activation: Callable[[], nn.Module], coefficients: tuple[float, ...]) -> None:
    """Float64 to 1e-10; in float32 the new form is no further than 4 times the old one's distance from float64."""
    found = compiled(3, Residual(activation), coefficients=coefficients)
    exact = compiled(3, Residual(activation), coefficients=coefficients, dtype=torch.float64)
    wide, narrow = rewritten(exact.module), rewritten(found.module)
    assert str(narrow.graph).count("conv2d") > str(found.module.graph).count("conv2d")
    x = SAMPLES.double() * 3
    truth = exact.module(x)
    scale = truth.abs().max()
    assert (wide(x) - truth).abs().max() <= 1e-10 * scale
    old, new = ((m(x.float()).double() - truth).abs().max() for m in (found.module, narrow))
    assert new <= 4 * old + 1e-7 * scale


def test_more_than_eight_kept_channels_are_padded_to_whole_blocks(tmp_path: Path) -> None:
    """Eleven of 48 become 16 for the convolution that puts them back; eleven are compared."""
    found = compiled(11, Residual(channels=48))
    assert found.export(tmp_path / "m.onnx", target="onnxruntime-cpu").comparisons == 11 * 64 * 5
    assert operators(tmp_path / "m.onnx")["Pad"] == 5
    shapes = {t.name: tuple(t.dims) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    put = {shape for name, shape in shapes.items() if name.endswith("put.weight")}
    assert put == {(48, 16, 1, 1)}


@pytest.mark.parametrize(
    ("kept", "model", "granularity"),
    [
        (33, Residual(channels=160), "channel"),  # slices are faster
        (5, Residual(), "channel"),  # likewise, above a quarter
        (2, Residual(channels=12), "channel"),  # not in blocks
        (2, Residual(nn.PReLU), "channel"),  # each kept channel has a slope of its own
        (2, Residual(), "element"),
    ],
    ids=["many", "share", "channels", "prelu", "elements"],
)
def test_other_sites_stay_as_they_are(kept: int, model: nn.Module, granularity: str) -> None:
    module = compiled(kept, model, granularity=granularity).module
    assert [n.target for n in rewritten(module).graph.nodes] == [n.target for n in module.graph.nodes]


def test_concatenations_of_the_models_own_stay(tmp_path: Path) -> None:
    """Whatever a model joins itself: cuts in the very form of a lowered site, halves, zeros, maxima, broadcasts."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
            self.t = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            cut = torch.ops.aten.slice.Tensor
            x = self.a(x)
            x = torch.cat([torch.relu(cut(x, 1, 0, 3)), cut(x, 1, 3, 8) * 0.5], 1)
            p, q = self.b(x).chunk(2, 1)
            x = self.c(torch.cat([p, torch.relu(q)], 1))
            x = torch.cat([torch.relu(cut(x, 1, 0, 4)), cut(x, 1, 4, 5) + self.t], 1)
            parts = [x, torch.zeros(x.shape[0], 2, 5, 5), x.max(1, keepdim=True)[0]]
            return torch.cat([*parts, x.mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 1, 5, 5)], 1)

    x = torch.randn(4, 8, 5, 5)
    found = autorep_fx.transform(Own(), "100%", example_inputs=x)
    assert [n.target for n in rewritten(found.module).graph.nodes] == [n.target for n in found.module.graph.nodes]
    found.export(tmp_path / "m.onnx", target="onnxruntime-cpu")


def test_sites_with_large_inputs_behind_a_sum_are_not_subtracted() -> None:
    """x² − (x² − relu(x)) loses bits with |x|: above 32 the slices stay; alone behind a convolution nothing is lost."""
    torch.manual_seed(0)
    model = Residual()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.constant_(norm.weight, 30.0)
    found = compiled(3, model)
    narrow = rewritten(found.module)
    assert str(narrow.graph).count("aten.cat") == 2 and str(found.module.graph).count("aten.cat") == 5
    truth = compiled(3, model, dtype=torch.float64).module(SAMPLES.double())
    old, new = ((m(SAMPLES).double() - truth).abs().max() / truth.abs().max() for m in (found.module, narrow))
    assert new <= 4 * old + 1e-7


def test_a_file_without_such_sites_is_for_any_engine(tmp_path: Path) -> None:
    """Element gates: nothing is written otherwise, and nothing is refused."""
    compiled(2, granularity="element").export(tmp_path / "m.onnx", target="onnxruntime-cpu")
    assert not [entry for entry in onnx.load(tmp_path / "m.onnx").metadata_props if entry.key.endswith("target")]
    assert secure_work(load_model(tmp_path / "m.onnx"))


def test_a_budget_of_a_secure_engine_is_at_odds_with_it(
    two_kept: autorep_fx.Compiled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is written as asked for, with a warning."""
    plan = dataclasses.replace(two_kept.plan, budget=Budget.parse("2MB@semi2k"))
    found = dataclasses.replace(two_kept, plan=plan)
    found.export(tmp_path / "any.onnx")
    assert "secure engine" not in caplog.text
    found.export(tmp_path / "m.onnx", target="onnxruntime-cpu")
    assert "The budget is 2 MB a query under semi2k, and the file is for onnxruntime alone" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_types_are_written_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    compiled(2, dtype=dtype).export(tmp_path / "m.onnx", target="onnxruntime-cpu")
    types = {t.data_type for t in onnx.load(tmp_path / "m.onnx").graph.initializer if "put" in t.name}
    assert types == {onnx.TensorProto.FLOAT}


def test_the_module_itself_is_not_changed(two_kept: autorep_fx.Compiled, tmp_path: Path) -> None:
    """Neither its graph, nor its weights, nor its free batch: it can be exported for any engine afterwards."""
    found = two_kept
    before, weights, cost = str(found.module.graph), copy.deepcopy(found.module.state_dict()), found.cost()
    found.export(tmp_path / "ort.onnx", target="onnxruntime-cpu")
    assert str(found.module.graph) == before and found.cost() == cost
    assert all(torch.equal(value, weights[name]) for name, value in found.module.state_dict().items())
    found.export(tmp_path / "any.onnx", target="any")
    assert operators(tmp_path / "any.onnx")["Concat"] == 5


def test_a_target_in_the_settings_is_that_of_saved_results(tmp_path: Path) -> None:
    """``export: {target: …}``, and the file says what it is for."""
    settings = {
        "gates": {"granularity": "channel"}, "sites": {"*": {"budget": 0.126}},
        "export": {"target": "onnxruntime-cpu"},
    }  # fmt: skip
    found = autorep_fx.transform(
        trained_norms(Residual(), SAMPLES), 0.126, example_inputs=SAMPLES, config=settings, out_dir=tmp_path
    )
    stated = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert stated["autorep_fx.target"] == "onnxruntime-cpu" == found.config.export.target


def test_engines_in_fixed_point_refuse_the_file(two_kept: autorep_fx.Compiled, tmp_path: Path) -> None:
    """Its 2⁻³⁰ would be 0 there: splitting it and predicting its cost name the target and the remedy."""
    from autorep_fx.runtime.secure.split import split_model

    two_kept.export(tmp_path / "m.onnx", target="onnxruntime-cpu")
    for attempt in (split_model, lambda path: secure_work(load_model(path))):
        with pytest.raises(ModelFileError, match=r'made for onnxruntime[\s\S]*onnxruntime-cpu[\s\S]*target="any"'):
            attempt(tmp_path / "m.onnx")


def test_targets_that_cannot_be_are_refused(two_kept: autorep_fx.Compiled, tmp_path: Path) -> None:
    """An unknown one, and float16, whose convolutions onnxruntime's CPU kernels lack; nothing is written."""
    with pytest.raises(ConfigError, match=r"export\.target: Input should be 'any' or 'onnxruntime-cpu'"):
        two_kept.export(tmp_path / "m.onnx", target="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="onnxruntime-cpu is for float32"):
        autorep_fx.prepare(
            Residual(), "50%", example_inputs=SAMPLES,
            config={"export": {"dtype": "float16", "target": "onnxruntime-cpu"}},
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
