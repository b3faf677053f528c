"""Folding batch norm: the operations that are left, equality in float64, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep_fx.passes.canonicalize import CanonicalizePass
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.fold_batchnorm import FoldBatchnormPass
from autorep_fx.passes.graphs import aten_name, calls, sites_of


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, with norms whose statistics and parameters are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.running_mean, -1.0), (module.running_var, 0.1), (module.weight, -1.0),
                                (module.bias, -1.0)):  # fmt: skip
                if tensor is not None:
                    tensor.data.uniform_(low, 2.0, generator=generator)
    return model.eval()


def example(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def operations(module: CapturedModule) -> list[str]:
    return [name.split(".")[1] for node in module.graph.nodes if (name := aten_name(node))]


class Sum(nn.Module):
    """Two folds around a sum, with a shared ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4, affine=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + y)


class OneWeight(nn.Module):
    """One convolution called twice, each call with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 7), ["conv1d"]),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (3, 7, 7), ["conv2d"]),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 4, 4, 4), ["conv3d"]),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, dilation=2, groups=4), nn.BatchNorm2d(8), nn.ReLU()),
        (4, 9, 9),
        ["conv2d", "relu"],
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, bias=False),
                              nn.BatchNorm2d(6)),
        (4, 5, 5),
        ["conv_transpose2d"],
    ),
    "transposed 1d": (
        lambda: nn.Sequential(nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 7), ["conv_transpose1d"]
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (5,), ["linear"]),
    "linear without bias": (
        lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, eps=0.1)), (5,), ["linear"]
    ),
    "cumulative": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None)), (3, 5, 5), ["conv2d"]
    ),
    "sum": (Sum, (3, 6, 6), ["conv2d", "relu", "conv2d", "add", "relu"]),
    "one weight": (OneWeight, (3, 5, 5), ["conv2d", "relu", "conv2d"]),
    "chain": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)),
        (3, 5, 5),
        ["conv2d", "conv2d"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_the_norm_is_gone_and_the_values_are_equal(name: str) -> None:
    """The exact operations are left, and in float64 outputs differ by at most 1e-10 at several batch sizes."""
    make, shape, expected = FOLDED[name]
    model = trained(make())
    module = capture_graph(model, example(2, *shape))
    assert FoldBatchnormPass()(module).modified is True
    assert operations(module) == expected
    for size in (1, 2, 5):
        x = example(size, *shape, seed=size)
        torch.testing.assert_close(module(x), model(x), rtol=0, atol=1e-10)
    assert FoldBatchnormPass()(module).modified is False
    assert operations(module) == expected


def test_float32_is_rounded_once() -> None:
    """Folded weights are the float64 result rounded to float32, in the dtype of the graph."""
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).float()
    module = capture_graph(model, example(2, 3, 5, 5).float())
    FoldBatchnormPass()(module)
    [conv] = calls(module, torch.ops.aten.conv2d.default)
    weight = module.get_buffer(str(conv.args[1].target))  # type: ignore[union-attr]
    norm = model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = model[0].weight.double() * scale.view(-1, 1, 1, 1)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.double(), exact.detach(), rtol=2**-24 * 1.01, atol=0)


def test_sites_and_recorded_shapes_survive() -> None:
    """What the nodes carry moves on: sites are unchanged, and the new convolution has the norm's shape."""
    module = capture_graph(trained(Sum()), example(2, 3, 6, 6))
    CanonicalizePass()(module)
    before = sites_of(module)
    FoldBatchnormPass()(module)
    assert sites_of(module) == before
    assert len(before) == 2
    for conv in calls(module, torch.ops.aten.conv2d.default):
        assert tuple(conv.meta["val"].shape[1:]) == (4, 6, 6)
        assert conv.meta["nn_module_stack"]


def test_the_old_parameters_stay_in_the_state() -> None:
    """Folding adds tensors; the model's own keep name and value."""
    model = trained(Sum())
    module = capture_graph(model, example(2, 3, 6, 6))
    FoldBatchnormPass()(module)
    state = module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


class Part(nn.Module):
    """A convolution and a norm, joined by a function."""

    def __init__(self, join: Callable[[Any, Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.join, self.conv, self.bn = join, nn.Conv2d(3, 3, 1), norm or nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def shared_output(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.bn(y) + y


def behind_a_sum(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.conv(x) + x)


def computed_weight(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.conv2d(x, m.conv.weight * 2, m.conv.bias))


def computed_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.conv2d(x, m.conv.weight, m.conv.bias * 2))


def computed_statistics(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(m.conv(x), m.bn.running_mean * 2, m.bn.running_var + 1, m.bn.weight, m.bn.bias)


def computed_scale(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(m.conv(x), m.bn.running_mean, m.bn.running_var, m.bn.weight.exp(), m.bn.bias)


def plain(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.conv(x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shared convolution output": (lambda: Part(shared_output), (3, 5, 5)),
    "no convolution": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), (3, 5, 5)),
    "behind a sum": (lambda: Part(behind_a_sum), (3, 5, 5)),
    "batch statistics": (lambda: Part(plain, nn.BatchNorm2d(3, track_running_stats=False)), (3, 5, 5)),
    "linear with three axes": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(5)), (5, 4)),
    "computed weight": (lambda: Part(computed_weight), (3, 5, 5)),
    "computed bias": (lambda: Part(computed_bias), (3, 5, 5)),
    "computed statistics": (lambda: Part(computed_statistics), (3, 5, 5)),
    "computed scale": (lambda: Part(computed_scale), (3, 5, 5)),
    "ReLU between": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), (3, 5, 5)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fold_is_left_alone(name: str) -> None:
    """The pass says that it changed nothing, and operations, state and values are as before."""
    make, shape = REFUSED[name]
    model = trained(make())
    module = capture_graph(model, example(2, *shape))
    before, state = operations(module), list(module.state_dict())
    assert "batch_norm" in before
    assert FoldBatchnormPass()(module).modified is False
    assert operations(module) == before
    assert list(module.state_dict()) == state
    x = example(3, *shape, seed=1)
    torch.testing.assert_close(module(x), model(x), rtol=0, atol=1e-10)


def test_a_module_in_training_is_left_alone() -> None:
    """In training the norm uses the batch, which no weight can hold; back in eval mode it folds."""
    module = capture_graph(trained(Part(plain)), example(2, 3, 5, 5))
    module.train()
    assert FoldBatchnormPass()(module).modified is False
    module.eval()
    assert FoldBatchnormPass()(module).modified is True


def test_only_what_can_be_folded_is() -> None:
    """Of two norms in one model, one folds and the other stays."""
    model = trained(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    module = capture_graph(model, example(2, 3, 5, 5))
    assert FoldBatchnormPass()(module).modified is True
    assert operations(module) == ["batch_norm", "conv2d"]
    x = example(4, 3, 5, 5)
    torch.testing.assert_close(module(x), model(x), rtol=0, atol=1e-10)
