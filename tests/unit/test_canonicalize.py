"""Canonicalisation: every spelling of an activation is found, named and counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep_fx.errors import UnsupportedModelError
from autorep_fx.kinds import KINDS
from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.graphs import aten_name, site_nodes, sites_of
from autorep_fx.passes.stages import check_canonical
from autorep_fx.sites import Site


class Call(nn.Module):
    """Calls a function; parts are registered under their names."""

    def __init__(self, function: Callable[[Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def canonical(model: nn.Module, x: Tensor | None = None) -> CapturedModule:
    module = capture_graph(model, torch.randn(2, 4, 6, 6) if x is None else x)
    CanonicalizePass()(module)
    check_canonical(module)
    return module


def operations(module: CapturedModule) -> list[str]:
    return [name for node in module.graph.nodes if (name := aten_name(node))]


class Thrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))  # first
        x = self.relu(x - 1)  # second
        return self.relu(x - 2)  # third


def test_one_module_called_three_times_is_three_sites() -> None:
    """Named relu, relu#2 and relu#3, each with its shape, its comparisons and the line of its call."""
    sites = sites_of(canonical(Thrice()))
    assert [site.name for site in sites] == ["relu", "relu#2", "relu#3"]
    assert {(site.kind, site.shape, site.comparisons, site.gateable) for site in sites} == {
        ("relu", (3, 6, 6), 108, True)
    }
    lines, start = inspect.getsourcelines(Thrice)
    for site, mark in zip(sites, ("# first", "# second", "# third"), strict=True):
        [offset] = [i for i, line in enumerate(lines) if mark in line]
        assert site.source is not None
        assert site.source.endswith(f"test_canonicalize.py:{start + offset}")


def test_sites_are_named_after_the_module_that_calls() -> None:
    """A call in a submodule has its path; an activation module has its own path, others the kind behind it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.act(x) - 1) - 1

    model = nn.Sequential(Block(), nn.Sequential(Block(), nn.SiLU()))
    names = [site.name for site in sites_of(canonical(model))]
    assert names == ["0.act", "0.relu", "1.0.act", "1.0.relu", "1.1"]


SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], str, str, tuple[float, ...], int]] = {
    "F.relu": (F.relu, "relu", "aten.relu.default", (), 1),
    "torch.relu": (torch.relu, "relu", "aten.relu.default", (), 1),
    "x.relu_()": (lambda x: (x * 2).relu_(), "relu", "aten.relu.default", (), 1),
    "F.relu(inplace)": (lambda x: F.relu(x * 2, inplace=True), "relu", "aten.relu.default", (), 1),
    "clamp(min=0)": (lambda x: x.clamp(min=0), "relu", "aten.relu.default", (), 1),
    "clamp(0.0)": (lambda x: x.clamp(0.0), "relu", "aten.relu.default", (), 1),
    "clamp_(min=0)": (lambda x: (x * 2).clamp_(min=0), "relu", "aten.relu.default", (), 1),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), "relu", "aten.relu.default", (), 1),
    "clamp_min(min=)": (lambda x: torch.clamp_min(x, min=0), "relu", "aten.relu.default", (), 1),
    "threshold": (lambda x: F.threshold(x, 0, 0), "relu", "aten.relu.default", (), 1),
    "relu6": (F.relu6, "clip", "aten.hardtanh.default", (0.0, 6.0), 2),
    "hardtanh": (F.hardtanh, "clip", "aten.hardtanh.default", (-1.0, 1.0), 2),
    "hardtanh(a, b)": (lambda x: F.hardtanh(x, -2, 0.5), "clip", "aten.hardtanh.default", (-2, 0.5), 2),
    "hardtanh(max=)": (lambda x: F.hardtanh(x, max_val=3.0), "clip", "aten.hardtanh.default", (-1.0, 3.0), 2),
    "clamp(a, b)": (lambda x: x.clamp(-1, 2), "clip", "aten.hardtanh.default", (-1.0, 2.0), 2),
    "clip(max, min)": (lambda x: torch.clip(x, max=2.5, min=0), "clip", "aten.hardtanh.default", (0.0, 2.5), 2),
    "clip(min=0)": (lambda x: x.clip(min=0), "relu", "aten.relu.default", (), 1),
    "expit": (torch.special.expit, "sigmoid", "aten.sigmoid.default", (), 1),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), "leaky_relu", "aten.leaky_relu.default", (0.2,), 1),
    "elu": (F.elu, "elu", "aten.elu.default", (), 1),
    "silu": (F.silu, "silu", "aten.silu.default", (), 1),
    "gelu": (F.gelu, "gelu", "aten.gelu.default", (), 1),
    "mish": (F.mish, "mish", "aten.mish.default", (), 1),
    "hardswish": (F.hardswish, "hardswish", "aten.hardswish.default", (), 2),
    "hardsigmoid": (F.hardsigmoid, "hardsigmoid", "aten.hardsigmoid.default", (), 2),
    "sigmoid": (torch.sigmoid, "sigmoid", "aten.sigmoid.default", (), 1),
    "tanh": (torch.tanh, "tanh", "aten.tanh.default", (), 1),
    "softplus": (F.softplus, "softplus", "aten.softplus.default", (), 1),
    "selu": (F.selu, "selu", "aten.selu.default", (), 1),
    "celu": (lambda x: F.celu(x, 2.0), "celu", "aten.celu.default", (2.0,), 1),
    "rrelu": (lambda x: F.rrelu(x, 0.1, 0.3), "leaky_relu", "aten.leaky_relu.default", (0.2,), 1),
    "hardtanh(0, 6)": (lambda x: F.hardtanh(x, 0, 6), "clip", "aten.hardtanh.default", (0.0, 6.0), 2),
}
# Written out, by hand or by a library: found by what they compute.
COMPOSED: dict[str, tuple[Callable[[Tensor], Tensor], str, tuple[float, ...]]] = {
    "maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), "relu", ()),
    "maximum of a constant": (lambda x: torch.maximum(x, torch.tensor(0.0)), "relu", ()),
    "where": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "relu", ()),
    "product with a comparison": (lambda x: x * (x > 0), "relu", ()),
    "half of x and |x|": (lambda x: (x + x.abs()) / 2, "relu", ()),
    "relu of a relu": (lambda x: F.relu(F.relu(x)), "relu", ()),
    "relu6 of a relu": (lambda x: F.relu6(F.relu(x)), "clip", (0.0, 6.0)),
    "clamp by constants": (lambda x: torch.clamp(x, torch.tensor(0.0), torch.tensor(6.0)), "clip", (0.0, 6.0)),
    "two clamps": (lambda x: x.clamp(max=6).clamp(min=0), "clip", (0.0, 6.0)),
    "clamp of a relu": (lambda x: F.relu(x).clamp(max=4.0), "clip", (0.0, 4.0)),
    "clip of a relu": (lambda x: F.relu(x).clamp(-1, 3), "clip", (0.0, 3.0)),
    "relu of a clip": (lambda x: F.relu(F.hardtanh(x, -2, 3)), "clip", (0.0, 3.0)),
    "clip of a clip": (lambda x: F.hardtanh(F.hardtanh(x, -2, 3), -1, 7), "clip", (-1.0, 3.0)),
    "wider clip of a clip": (lambda x: F.hardtanh(F.hardtanh(x, -2, 3), -4, 7), "clip", (-2.0, 3.0)),
    "relu of a clamp": (lambda x: F.relu(x.clamp(min=-1.0)), "relu", ()),
    "clamp_max of a relu": (lambda x: F.relu(x).clamp_max(2.0), "clip", (0.0, 2.0)),
    "leaky where": (lambda x: torch.where(x > 0, x, 0.1 * x), "leaky_relu", (0.1,)),
    "x sigmoid(x)": (lambda x: x * torch.sigmoid(x), "silu", ()),
    "x / (1 + exp(-x))": (lambda x: x / (1 + torch.exp(-x)), "silu", ()),
    "logistic": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid", ()),
    "tanh by sigmoid": (lambda x: 2 * torch.sigmoid(2 * x) - 1, "tanh", ()),
    "x relu6(x + 3) / 6": (lambda x: x * F.relu6(x + 3) / 6, "hardswish", ()),
    "x (relu6(x + 3) / 6)": (lambda x: x * (F.relu6(x + 3.0) / 6.0), "hardswish", ()),
    "x hardsigmoid(x)": (lambda x: x * F.hardsigmoid(x), "hardswish", ()),
    "relu6(x + 3) / 6": (lambda x: F.relu6(x + 3) / 6, "hardsigmoid", ()),
    "x tanh(softplus(x))": (lambda x: x * F.softplus(x).tanh(), "mish", ()),
    "gelu by erf": (lambda x: x * 0.5 * (1.0 + torch.erf(x / 2**0.5)), "gelu", ()),
    "gelu by tanh": (
        lambda x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))), "gelu", (),
    ),
    "gelu by tanh, factored": (
        lambda x: x * 0.5 * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))), "gelu", (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_its_kind(name: str) -> None:
    """The canonical operation with its arguments, one gateable site with exact comparisons, equal values."""
    function, kind, target, arguments, comparisons = SPELLINGS[name]
    module = canonical(Call(function))
    [(node, site)] = site_nodes(module)
    assert aten_name(node) == target
    assert tuple(node.args[1 : 1 + len(arguments)]) == pytest.approx(arguments)
    assert site == Site(kind, kind, (4, 6, 6), comparisons, 0, site.source, owners=(f"{Call.__module__}.Call",))
    assert site.comparisons == 144 * comparisons
    x = torch.randn(3, 4, 6, 6) * 4
    assert torch.equal(module(x), function(x))


@pytest.mark.parametrize("name", COMPOSED)
def test_what_is_written_out_is_its_kind(name: str) -> None:
    """Several operations that are one activation are one gateable site; values agree to rounding."""
    function, kind, arguments = COMPOSED[name]
    module = canonical(Call(function))
    [(node, site)] = site_nodes(module)
    assert (site.kind, site.gateable, site.shape) == (kind, True, (4, 6, 6))
    assert aten_name(node) == KINDS[kind].target
    assert node.args[1:] == arguments
    x = torch.randn(3, 4, 6, 6) * 4
    torch.testing.assert_close(module(x), function(x))


def test_the_two_forms_of_gelu_are_told_apart() -> None:
    """The one by tanh keeps its approximation."""
    for name, expected in (("gelu by erf", {}), ("gelu by tanh", {"approximate": "tanh"})):
        [(node, _)] = site_nodes(canonical(Call(COMPOSED[name][0])))
        assert node.kwargs == expected


def test_every_spelling_of_the_table_has_a_case() -> None:
    """A new spelling needs one."""
    calls: set[str] = set()
    for function, *_ in SPELLINGS.values():
        calls.update(operations(capture_graph(Call(function), torch.randn(2, 4, 6, 6))))
    assert {target for kind in KINDS.values() for target in kind.spellings} <= calls


LEFT: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), ["sigmoid"]),
    "gate of another value": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), ["sigmoid"]),
    "sigmoid used twice": (lambda x: (x * (s := torch.sigmoid(x)), s), ["sigmoid"]),
    "squared relu": (lambda x: F.relu(x).square(), ["relu"]),
    "almost a silu": (lambda x: x * torch.sigmoid(1.0001 * x), ["sigmoid"]),
    "softsign": (F.softsign, ["abs"]),
    "a guard of a division": (lambda x: x.clamp(min=1e-12), ["clamp"]),
    "a relu and a guard": (lambda x: F.relu(x) + 1e-12, ["relu"]),
    "a normalisation": (lambda x: F.normalize(x, dim=1), ["clamp_min"]),
    "a relu that is read too": (lambda x: ((y := F.relu(x)) * 2, y.clamp(max=1.0)), ["relu", "clamp"]),
    "clamps that make a one-sided one": (lambda x: x.clamp(max=3.0).clamp(max=2.0), ["clamp"]),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_something_else_is_left(name: str) -> None:
    """Nothing is merged that is another function, takes another value, or is needed elsewhere."""
    function, kinds = LEFT[name]
    module = canonical(Call(function))
    assert [site.kind for site in sites_of(module)] == kinds
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(module(x), function(x), rtol=0, atol=0)


class Scaled(nn.Module):
    """x·sigmoid(scale·x) with a number that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.scale * x)


def test_parameters_are_no_constants() -> None:
    """What happens to be a SiLU now may be trained to be another function."""
    assert [site.kind for site in sites_of(canonical(Scaled()))] == ["sigmoid"]


@pytest.mark.parametrize("axis", [1, -1])
def test_a_glu_is_a_product_with_a_sigmoid(axis: int) -> None:
    """Of half the elements, gateable, named after its module."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.GLU(axis)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)

    module = canonical(Holder())
    [site] = sites_of(module)
    assert (site.name, site.kind, site.comparisons, site.gateable) == ("act", "sigmoid", 72, True)
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(module(x), F.glu(x, axis), rtol=0, atol=1e-6)


UNCOUNTABLE: dict[str, Callable[[Tensor], Any]] = {
    "cummax": lambda x: x.cummax(1).values,
    "median": lambda x: x.median(1).values,
    "kthvalue": lambda x: x.kthvalue(2, 1).values,
    "mode": lambda x: x.mode(1).values,
    "max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "bucketize": lambda x: torch.bucketize(x, torch.linspace(-1, 1, 5)).float(),
    "any": lambda x: x.any(1).float(),
    "logical_and": lambda x: torch.logical_and(x, x * 2).float(),
    "windows of different sizes": lambda x: F.adaptive_max_pool2d(x, 4),
    "secret positions": lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False),
}


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_what_cannot_be_counted_is_refused(name: str) -> None:
    """An obstacle with the line of the call."""
    with pytest.raises(UnsupportedModelError, match=r"test_canonicalize\.py:\d+\)") as caught:
        canonical(Call(UNCOUNTABLE[name]))
    assert len(caught.value.obstacles) == 1


def test_logic_on_truth_values_is_free() -> None:
    """Only the comparisons that made them count."""
    sites = sites_of(canonical(Call(lambda x: x * torch.logical_and(x > 0.1, ~(x > 2)).any(1, keepdim=True))))
    assert sum(site.comparisons for site in sites) == 2 * 144


@pytest.mark.parametrize(
    ("model", "reason"),
    [(nn.PReLU(), None), (nn.PReLU(4), None), (Call(lambda x: F.prelu(x, x.mean((0, 2, 3)))), "computed in the graph")],
    ids=["one slope", "a slope per channel", "computed slopes"],
)
def test_a_prelu_is_gateable_where_its_slopes_are_the_models(model: nn.Module, reason: str | None) -> None:
    """One comparison per element either way."""
    [site] = sites_of(canonical(model))
    assert (site.kind, site.comparisons, site.gateable) == ("prelu", 144, reason is None)
    assert reason is None or reason in str(site.reason)


def test_slopes_per_channel_say_which_axis_has_the_channels() -> None:
    """Behind a linear layer over tokens too, whose features would be on the last axis."""
    for slopes, expected in ((3, 0), (1, 1)):
        model = nn.Sequential(nn.Linear(5, 7), nn.PReLU(slopes))
        [site] = sites_of(canonical(model, torch.randn(2, 3, 5)))
        assert site.channel_axis == expected


@pytest.mark.parametrize(
    ("module", "name"), [(nn.ReLU(), "act"), (nn.ReLU6(), "act"), (nn.Hardtanh(-2, 2), "act"), (nn.SiLU(), "act")]
)
def test_activation_modules_name_their_site(module: nn.Module, name: str) -> None:
    """The site of a module is the path of the module."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = module

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)

    [site] = sites_of(canonical(Holder()))
    assert site.name == name


FIXED: dict[str, tuple[Callable[[Tensor], Any], str, int]] = {
    # Of an input (4, 6, 6): 144 elements.
    "max_pool2d 2": (lambda x: F.max_pool2d(x, 2), "max_pool2d", 4 * 9 * 3),
    "max_pool2d 3 stride 2 padding 1": (lambda x: F.max_pool2d(x, 3, 2, 1), "max_pool2d", 4 * 9 * 8),
    "max_pool2d (2, 3)": (lambda x: F.max_pool2d(x, (2, 3)), "max_pool2d", 4 * 3 * 2 * 5),
    "max_pool1d": (lambda x: F.max_pool1d(x.flatten(2), 3), "max_pool1d", 4 * 12 * 2),
    "with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d", 4 * 9 * 3),
    "clip(max=1)": (lambda x: torch.clip(x, max=1), "clamp", 144),
    "absolute": (torch.absolute, "abs", 144),
    "greater": (lambda x: torch.greater(x, 0.5) * x, "gt", 144),
    "less_equal": (lambda x: torch.less_equal(x, 0.5) * x, "le", 144),
    "special softmax": (lambda x: torch.special.softmax(x, 1), "softmax", 36 * 3),
    "aminmax": (lambda x: tuple(torch.aminmax(x, dim=1)), "aminmax", 2 * 36 * 3),
    "adaptive": (lambda x: F.adaptive_max_pool2d(x, 1), "adaptive_max_pool2d", 4 * 35),
    "amax": (lambda x: x.amax((2, 3)), "amax", 4 * 35),
    "amin": (lambda x: x.amin(1), "amin", 36 * 3),
    "max values": (lambda x: x.max(1).values, "max", 36 * 3),
    "max both": (lambda x: tuple(x.max(1)), "max", 2 * 36 * 3),
    "argmax": (lambda x: x.argmax(1), "argmax", 36 * 3),
    "softmax": (lambda x: x.softmax(1), "softmax", 36 * 3),
    "softmax last": (lambda x: x.softmax(-1), "softmax", 24 * 5),
    "log_softmax": (lambda x: F.log_softmax(x, 1), "log_softmax", 36 * 3),
    "logsumexp": (lambda x: x.logsumexp(1), "logsumexp", 36 * 3),
    "topk": (lambda x: x.topk(2, -1).values, "topk", 24 * (5 + 4)),
    "sort": (lambda x: x.sort(1).values, "sort", 36 * (3 + 2 + 1)),
    "maximum": (lambda x: torch.maximum(x, x * 2), "maximum", 144),
    "max of two": (lambda x: torch.max(x, x * 2), "max", 144),
    "min of two": (lambda x: torch.min(x, x * 2), "min", 144),
    "abs": (torch.abs, "abs", 144),
    "comparison": (lambda x: (x > 0.5) * x, "gt", 144),
    "clamp(min=1)": (lambda x: x.clamp(min=1.0), "clamp", 144),
    "clamp(max=0)": (lambda x: x.clamp(max=0), "clamp", 144),
    "clamp_min(1)": (lambda x: torch.clamp_min(x, 1.0), "clamp_min", 144),
    "clamp by tensors": (lambda x: torch.clamp(x, x * 0.5, x * 2), "clamp", 2 * 144),
    "threshold(1, 2)": (lambda x: F.threshold(x, 1, 2), "threshold", 144),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3]),
        "scaled_dot_product_attention",
        24 * 2,
    ),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.25])), "prelu", 144),
    "equal": (lambda x: (x == 0.5) * x, "eq", 144),
    "to bool": (lambda x: x.bool() * x, "to", 144),
    "floor": (torch.floor, "floor", 144),
    "trunc": (torch.trunc, "trunc", 3 * 144),
    "rounded division": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), "div", 3 * 144),
    "maximum norm": (lambda x: torch.linalg.vector_norm(x, torch.inf, 1), "linalg_vector_norm", 144 + 108),
    "sum norm": (lambda x: torch.linalg.vector_norm(x, 1, 1), "linalg_vector_norm", 144),
    "hardtanh to infinity": (lambda x: F.hardtanh(x, -1.0, torch.inf), "hardtanh", 144),
    "logsigmoid": (F.logsigmoid, "log_sigmoid", 144),
    "hardshrink": (F.hardshrink, "hardshrink", 2 * 144),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_else_compares_is_fixed(name: str) -> None:
    """One site with the nominal count of its operation, and the reason why no gate replaces it."""
    function, operation, comparisons = FIXED[name]
    [site] = sites_of(canonical(Call(function)))
    assert (site.name, site.kind, site.comparisons) == (operation, operation, comparisons)
    assert not site.gateable
    assert operation in str(site.reason)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.arange(4).clamp(1, 2).view(1, 4, 1, 1),
        lambda x: x * torch.arange(4).clamp(min=0).view(1, 4, 1, 1),
        lambda x: x * torch.relu(torch.arange(-2, 2)).view(1, 4, 1, 1),
        lambda x: x * torch.arange(4).abs().view(1, 4, 1, 1),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.layer_norm(x, (6,)).exp() + x.cos(),
        lambda x: x * (torch.ones(x.shape[0], 1, 1, 1) > 0.5) + (torch.zeros_like(x) > 0),
        lambda x: torch.linalg.vector_norm(x, 2, 1, keepdim=True) * x.isnan(),
    ],
)
def test_integers_and_smooth_arithmetic_are_no_sites(function: Callable[[Tensor], Tensor]) -> None:
    """Public index arithmetic, average pooling and normalisation compare nothing secret."""
    module = canonical(Call(function))
    assert sites_of(module) == ()
    x = torch.randn(3, 4, 6, 6)
    assert torch.equal(module(x), function(x))


def test_the_second_run_changes_nothing() -> None:
    """Canonical graphs stay as they are, sites included, and the pass says so."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.conv = nn.ReLU(), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.conv(x)).clamp(-1, 1) + F.relu6(x)
            return F.max_pool2d(self.relu(x).clamp(min=0), 2).flatten(1).softmax(1)

    module = capture_graph(Mixed(), torch.randn(2, 4, 6, 6))
    assert CanonicalizePass()(module).modified is True
    before, sites = operations(module), sites_of(module)
    assert len(sites) == 5  # each clamp behind a ReLU is merged with it
    assert CanonicalizePass()(module).modified is False
    assert operations(module) == before
    assert sites_of(module) == sites


def test_a_graph_without_comparisons_is_not_modified() -> None:
    """Nothing to name, nothing changed."""
    module = capture_graph(nn.Conv2d(4, 4, 1), torch.randn(2, 4, 6, 6))
    assert CanonicalizePass()(module).modified is False


@pytest.mark.parametrize(
    ("model", "shape", "expected", "axis"),
    [
        (nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU()), (4, 6, 6), (8, 6, 6), 0),
        (nn.Sequential(nn.Linear(5, 7), nn.ReLU()), (5,), (7,), 0),
        (nn.Sequential(nn.Linear(5, 7), nn.GELU()), (3, 5), (3, 7), 1),
        (nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU()), (3, 5), (6, 5), 0),
        (Call(lambda x: F.relu(x.flatten(2).transpose(1, 2) + 1)), (4, 3, 5), (15, 4), 1),
        (Call(lambda x: F.relu(F.layer_norm(x.permute(0, 2, 3, 1), (4,)))), (4, 3, 5), (3, 5, 4), 2),
        (Call(lambda x: F.relu(F.layer_norm(x, (5,)).permute(0, 3, 1, 2))), (3, 4, 5), (5, 3, 4), 0),
        (Call(lambda x: F.relu(F.layer_norm(x, (5,)).mT)), (4, 5), (5, 4), 0),
    ],
    ids=["conv", "linear", "tokens", "conv1d", "transposed", "permuted to last", "permuted to first", "matrices"],
)
def test_the_channels_are_those_of_the_layer_before(
    model: nn.Module, shape: tuple[int, ...], expected: tuple[int, ...], axis: int
) -> None:
    """Behind a linear layer the last axis has the channels, behind a convolution the first."""
    [site] = sites_of(canonical(model, torch.randn(2, *shape)))
    assert (site.shape, site.channel_axis) == (expected, axis)
    assert site.channels == expected[axis]


def test_a_site_whose_axis_0_is_not_the_batch_is_declined_with_its_shape() -> None:
    """Gates are per sample: patches folded into the batch cannot be told apart, but are counted."""
    [site] = sites_of(canonical(Call(lambda x: F.relu(x.reshape(-1, 6)))))
    assert not site.gateable
    assert "batch axis" in str(site.reason)
    assert site.comparisons == 144


def test_one_element_per_sample_is_declined() -> None:
    """A site of shape (N,) has no channels to decide on, but is counted."""
    [site] = sites_of(canonical(Call(lambda x: F.relu(x.mean((1, 2, 3))))))
    assert not site.gateable
    assert site.comparisons == 1
