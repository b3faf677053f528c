"""Absorbing affine maps: the operations that are left, equality in float64, and the reasons for what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
from autorep_fx.cost.fx_count import operator_name
from autorep_fx.passes.absorb_affine import AbsorbAffinePass
from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.forms import NOTES_KEY
from nets import Call
from property.structures import gated_at_random, spread


def _lowered(model: nn.Module, *shape: int, **options: Any) -> tuple[autorep_fx.Compiled, list[str]]:
    """The compiled model, checked against the gated one in float64 at batches 1 and 3, and its operations."""
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).double()
    gated = gated_at_random(spread(model, 0).double(), x, **{"share": 0.0, **options})
    compiled = autorep_fx.lower(gated)
    with torch.no_grad():
        for size in (1, 3):
            torch.testing.assert_close(compiled.module(x[:size]), gated(x[:size]), rtol=0, atol=1e-10)
    return compiled, [name for node in compiled.module.graph.nodes if (name := operator_name(node))]


def _conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **options)


def _sequential(*parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*parts)


def _residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        for conv in (m.one, m.two, m.three):
            x = F.relu(conv(x) + x)
        return m.head(x)

    convs = {name: _conv(4, 4, 1) for name in ("one", "two", "three", "head")}
    return Call(forward, stem=_conv(3, 4), **convs)


def _joined() -> nn.Module:
    return Call(
        lambda m, x: m.head(F.relu(torch.cat([m.one(x), m.two(x)], 1))), one=_conv(3, 2), two=_conv(3, 3),
        head=_conv(5, 2, 1),
    )  # fmt: skip


def _two_readers() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.stem(x))
        return m.one(y) + m.two(y)

    return Call(forward, stem=_conv(3, 4), one=_conv(4, 2, 1), two=_conv(4, 2, 1))


# One multiplication per replaced element and nothing else, wherever the neighbours are linear.
ABSORBED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "between convolutions": (
        _sequential(_conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), _conv(4, 2)), ["conv2d", "mul", "conv2d"]
    ),
    "average pooling and flatten": (
        _sequential(_conv(3, 4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2)),
        ["conv2d", "mul", "avg_pool2d", "flatten", "linear"],
    ),
    "residual sums": (
        _residual, ["conv2d", "mul", *["conv2d", "add", "mul"] * 3, "conv2d"],
    ),
    "concatenation": (_joined, ["conv2d", "conv2d", "cat", "mul", "conv2d"]),
    "several consumers": (_two_readers, ["conv2d", "mul", "conv2d", "conv2d", "add"]),
    "transposed convolution": (
        _sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), _conv(4, 2)), ["conv_transpose2d", "mul", "conv2d"]
    ),
    "convolution in groups": (
        _sequential(_conv(3, 4), nn.ReLU(), _conv(4, 6, 3, groups=2), nn.ReLU(), _conv(6, 2)),
        ["conv2d", "mul", "conv2d", "mul", "conv2d"],
    ),
    "norm behind the activation": (
        _sequential(_conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), _conv(4, 2)), ["conv2d", "mul", "conv2d"]
    ),
    "norm of the input": (_sequential(nn.BatchNorm2d(3), _conv(3, 2)), ["conv2d"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSORBED)
def test_a_quadratic_leaves_one_multiplication(name: str) -> None:
    """The exact operations are left."""
    make, expected = ABSORBED[name]
    torch.manual_seed(0)
    model = make()
    if not any("relu" in text.lower() for text in (repr(model), name)) and name == "norm of the input":
        model = nn.Sequential(model, nn.ReLU(), _conv(2, 2))
        expected = [*expected, "mul", "conv2d"]
    compiled, operations = _lowered(model, 3, 8, 8)
    assert operations == expected
    assert NOTES_KEY not in compiled.module.meta


def test_a_linear_polynomial_leaves_nothing() -> None:
    """Degree 1: the operations of the network without activations, and linear layers that meet become one."""
    model = nn.Sequential(
        _conv(3, 4, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    _, operations = _lowered(model, 3, 8, 8, degree=1)
    assert operations == ["conv2d", "flatten", "linear"]


def _residual_with(degree: int, rows: dict[int, dict[int, float]], blocks: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Channel 0 of some gates of a residual network with these coefficients and no slope; the operations left."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        for name in blocks:
            x = F.relu(getattr(m, name)(x) + x)
        return m.head(x)

    torch.manual_seed(0)
    convs = {name: _conv(4, 4, 1) for name in (*blocks, "head")}
    x = torch.randn(4, 3, 8, 8).double()
    gated = gated_at_random(spread(Call(forward, stem=_conv(3, 4), **convs), 0).double(), x, share=0.0, degree=degree)
    for number, gate in enumerate(gated.gates.values()):
        coefficients = gate.coefficients.detach().clone()
        for row, value in rows.get(number, {}).items():
            coefficients[row, 0] = value
        gate.set_coefficients(coefficients)
    compiled = autorep_fx.lower(gated)
    with torch.no_grad():
        torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)
    return compiled, [name for node in compiled.module.graph.nodes if (name := operator_name(node))]


@pytest.mark.parametrize("rows", [{1: 1e-2}, {1: 0.0, 2: 1e-4}, {1: 0.0, 2: -1.0}])
def test_a_residual_sum_takes_the_scale_that_a_polynomial_leaves(rows: dict[int, float]) -> None:
    """Where a wish is out of bounds or of another sign, the convolution beside it adapts: no product by a scale."""
    degree = max(rows)
    _, operations = _residual_with(degree, {0: rows}, ("one",))
    product = ["mul"] * (degree - 1)
    assert operations == ["conv2d", *product, "conv2d", "add", *product, "conv2d"]


def test_scales_are_corrected_only_where_they_leave_their_bounds() -> None:
    """Slopes of a hundredth at five sites in a chain: a product by a scale at every other one, not at all."""
    flat = {number: {1: 0.01 + number / 1000} for number in range(5)}
    compiled, operations = _residual_with(1, flat, ("one", "two", "three", "four"))
    assert operations.count("mul") == 2
    sums = [i for i, name in enumerate(operations) if name in ("add", "mul")]
    assert [operations[i] for i in sums] == ["add", "mul", "add", "add", "mul", "add"]
    constants = [t for t in compiled.module.buffers() if t.is_floating_point()]
    assert max(float(t.abs().max()) for t in constants) < 1e4


def test_kept_and_replaced_elements_of_a_channel_share_its_form() -> None:
    """Element gates of degree 1: the dense part computes nothing; of degree 2: one product, and none with the kept."""
    model = nn.Sequential(_conv(3, 4), nn.ReLU(), _conv(4, 2))
    read, written = ["sym_size", "expand", "gather"], ["scatter", "unflatten", "conv2d"]
    _, operations = _lowered(model, 3, 8, 8, share=0.2, degree=1)
    assert operations == ["conv2d", "flatten", *read, "relu", "mul", "add", *written]
    _, operations = _lowered(model, 3, 8, 8, share=0.2)
    assert operations == ["conv2d", "flatten", "unflatten", "mul", "flatten", *read, "add", "relu", "add", *written]


@pytest.mark.parametrize(("c2", "products"), [(0.1, 1), (1e-3, 2), (-0.1, 2)])
def test_kept_elements_need_a_product_where_their_scale_is_out_of_bounds(c2: float, products: int) -> None:
    """The scale is 1/c2: beyond 64 it is not to be had, and no ReLU leaves a negative one."""
    torch.manual_seed(0)
    model, x = nn.Sequential(_conv(3, 4), nn.ReLU(), _conv(4, 2)), torch.randn(4, 3, 8, 8).double()
    gated = gated_at_random(spread(model, 0).double(), x, share=0.2)
    [gate] = gated.gates.values()
    coefficients = gate.coefficients.detach().clone()
    coefficients[1, 0], coefficients[2, 0] = 0.0, c2
    gate.set_coefficients(coefficients)
    compiled = autorep_fx.lower(gated)
    with torch.no_grad():
        torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)
    assert [operator_name(node) for node in compiled.module.graph.nodes].count("mul") == products


@pytest.mark.parametrize(
    "padded", [_conv(4, 9, padding=1), _conv(4, 2, 3, stride=2, padding=1)], ids=["large", "small"]
)
def test_a_shift_before_padded_convolutions_is_added_with_the_reason(padded: nn.Module) -> None:
    """The constant of the polynomial cannot pass padding with zeros: one addition stays, and no product."""
    compiled, operations = _lowered(nn.Sequential(_conv(3, 4), nn.ReLU(), padded), 3, 8, 8)
    assert operations == ["conv2d", "mul", "add", "conv2d"]
    assert list(compiled.lowering_notes) == [
        "1: the constant of the polynomial is added, since conv2d pads with zeros"
    ]  # fmt: skip


def test_pre_activation_networks_have_no_norm_left() -> None:
    """A norm after a sum moves its scale past the ReLU and keeps a shift before it; of a quadratic it keeps a shift."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(x + m.conv(F.relu(m.bn(x))))

    model = Call(forward, stem=_conv(3, 4), bn=nn.BatchNorm2d(4), conv=_conv(4, 4, 1), head=_conv(4, 2, 1))
    spread(model, 0)
    model.bn.weight.data.abs_()  # type: ignore[union-attr,operator]
    x = torch.randn(2, 3, 6, 6).double()
    for share, expected in ((1.0, ["conv2d", "add", "relu"]), (0.0, ["conv2d", "add", "mul"])):
        gated = gated_at_random(model.double(), x, share=share)
        compiled = autorep_fx.lower(gated)
        names = [name for node in compiled.module.graph.nodes if (name := operator_name(node))]
        assert names == [*expected, "conv2d", "add", "conv2d"]
        torch.testing.assert_close(compiled.module(x), gated(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("c2", "products"), [(2e-3, 1), (1e-5, 2)])
def test_an_ill_conditioned_square_is_not_completed(c2: float, products: int) -> None:
    """With the vertex far away the polynomial is z·(z + g), with one nearly linear it stays c0 + z·(c1 + c2·z).

    float32 stays as close to float64 as Horner's rule.
    """
    torch.manual_seed(0)
    model, x = nn.Sequential(_conv(3, 4), nn.ReLU(), _conv(4, 2)), torch.randn(8, 3, 8, 8)
    gated = gated_at_random(model, x, share=0.0)
    gated.gates["1"].set_coefficients(torch.tensor([[0.3], [1.0], [c2]]).expand(3, 4))
    compiled = autorep_fx.lower(gated)
    names = [name for node in compiled.module.graph.nodes if (name := operator_name(node))]
    assert names[0] == names[-1] == "conv2d"
    assert names.count("mul") == products
    with torch.no_grad():
        old = gated(x)
        new = compiled.module(x)
        truth = gated.double()(x.double())
    assert (new - truth).abs().max() <= 4 * (old - truth).abs().max()


def test_the_pass_says_honestly_whether_it_changed_anything() -> None:
    """Nothing to absorb: nothing modified. After it ran once, nothing is left."""
    x = torch.randn(2, 3, 8, 8)
    module = capture_graph(nn.Sequential(_conv(3, 4), nn.ReLU(), _conv(4, 2)).eval(), x)
    CanonicalizePass()(module)
    assert AbsorbAffinePass()(module).modified is False
    module = capture_graph(spread(nn.Sequential(nn.BatchNorm2d(3), _conv(3, 4)), 0), x)
    assert AbsorbAffinePass()(module).modified is True
    assert AbsorbAffinePass()(module).modified is False
    gated = gated_at_random(nn.Sequential(_conv(3, 4), nn.ReLU(), _conv(4, 2)), x, share=0.0).network
    assert AbsorbAffinePass()(gated).modified is True
    assert AbsorbAffinePass()(gated).modified is False


@pytest.mark.parametrize("degree", [1, 2])
def test_what_is_kept_is_never_divided_by_a_nearly_flat_polynomial(degree: int) -> None:
    """Eight sites in a row with slopes of 1e-8 in some channels: constants stay moderate, and float32 stays exact.

    Stored without its slope such a channel holds kept elements divided by it, and the quotients multiply.
    """
    layers = [part for _ in range(8) for part in (_conv(4, 4, 1), nn.ReLU())]
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    gated = gated_at_random(spread(nn.Sequential(*layers, _conv(4, 2, 1)), 0), x, share=0.5, degree=degree)
    for gate in gated.gates.values():
        rows = gate.coefficients.detach().clone()
        rows[1:, ::2] = 1e-8
        gate.set_coefficients(rows)
    module = autorep_fx.lower(gated).module
    constants = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    assert max(float(t.detach().abs().max()) for t in constants) < 1e4
    with torch.no_grad():
        old, new = gated(x), module(x)
        truth = gated.double()(x.double())
    assert (new - truth).abs().max() <= 4 * (old - truth).abs().max() + 1e-7 * truth.abs().max()
