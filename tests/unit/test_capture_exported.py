"""Capture of exported programs and graph modules, and what a capture does otherwise in training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import DataError, InvariantError, UnsupportedModelError
from autorep_fx.passes.training_differences import training_differences

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(momentum: float | None = 0.1) -> nn.Sequential:
    """Two norms, a dropout, an in-place ReLU."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=momentum), nn.ReLU(inplace=True), nn.Dropout(0.0),
        nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip


def exported(model: nn.Module, **options: Any) -> torch.export.ExportedProgram:
    """An exported program with a dynamic batch."""
    return torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("b", min=1)},), **options)


FORMS = {
    "program": exported,
    "its module": lambda model: exported(model).module(),
    "symbolic trace": torch.fx.symbolic_trace,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_any_form_of_a_model_is_captured(form: str, mode: str) -> None:
    """Outputs in eval as the model's, whichever mode it was exported in; parameter names too."""
    model = getattr(network(), mode)()
    captured = autorep_fx.capture(FORMS[form](model), X, verification="structure")
    reference = copy.deepcopy(model).eval()
    assert torch.allclose(captured(X), reference(X), atol=1e-6)
    assert [name for name, _ in captured.named_parameters()] == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("form", ["program", "its module"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_exported_program_trains_like_the_model(form: str, momentum: float | None) -> None:
    """Outputs, gradients, running statistics and counters after three steps in train mode."""
    model = network(momentum).eval()
    captured = autorep_fx.capture(FORMS[form](copy.deepcopy(model)), X)
    for module in (model, captured):
        module.train()
        for _ in range(3):
            module(X).square().sum().backward()
    ours = dict(captured.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(ours[name].grad, parameter.grad, rtol=1e-5, atol=1e-6), name  # type: ignore[arg-type]
    buffers = dict(captured.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.allclose(buffers[name].double(), buffer.double(), atol=1e-6), name


def test_a_program_goes_through_with_and_without_training() -> None:
    """The same count as from the model itself, and the teacher is the program."""
    model = network().eval()
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(3)]
    config = {"training": {"epochs": 1}, "finetune": {"epochs": 1}}
    compiled = autorep_fx.transform(exported(model), "10%", data=data, val_data=data, config=config)
    assert compiled.comparisons == 21
    assert compiled.warnings == ()
    assert compiled.metrics["original, torch"] == pytest.approx(
        sum(float((model(x).argmax(1) == y).float().mean()) for x, y in data) / 3
    )


def test_a_fixed_batch_is_an_obstacle() -> None:
    """With the sizes, and what to do."""
    program = torch.export.export(network().eval(), (X,))
    with pytest.raises(UnsupportedModelError, match=r"fixed sizes: \(4, 3, 8, 8\)"):
        autorep_fx.capture(program, X)


def test_inputs_that_a_program_does_not_take_are_data_errors() -> None:
    """Not an obstacle of the model."""
    with pytest.raises(DataError, match="fails on the example inputs"):
        autorep_fx.capture(exported(network().eval()), torch.randn(2, 3, 9, 9))


# What is otherwise in training.


class DropPath(nn.Module):
    """Stochastic depth as timm writes it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        return x * x.new_empty((len(x), 1, 1, 1)).bernoulli_(1 - self.drop_prob) / (1 - self.drop_prob)


class Varied(nn.Module):
    """A network with one of the ways in which training differs."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.drop = DropPath(0.5 if way == "path" else 0.0)

    def forward(self, x: Tensor) -> Any:
        y = self.drop(F.relu(self.norm(self.conv(x))))
        if self.way == "attention":
            tokens = y.flatten(2).mT
            y = F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.3 * self.training).mT.unsqueeze(3)
        y = F.dropout(y, 0.4, self.training).mean((2, 3))
        if self.way == "scale" and self.training:
            y = y * 2
        if self.way == "auxiliary" and self.training:
            return self.head(y), y
        return self.head(y)


DIFFERENCES = {
    "none": [],
    "path": ["1 DropPath modules (the last is drop, p = 0.5) are off in training"],
    "attention": ["dropout inside 1 attention calls is off in training"],
    "auxiliary": ["in train mode the model returns tuple with (4, 2), (4, 4), captured is a tensor with (4, 2)"],
}


@pytest.mark.parametrize("way", DIFFERENCES)
def test_what_differs_in_training_is_listed(way: str) -> None:
    """Plain dropout does not; stochastic depth, attention dropout and auxiliary heads do."""
    torch.manual_seed(0)
    model = Varied(way).eval()
    assert list(autorep_fx.capture(model, X).training_differences) == DIFFERENCES[way]
    assert list(autorep_fx.inspect(model, X).training_differences) == DIFFERENCES[way]


def test_another_way_in_train_mode_is_measured() -> None:
    """A branch on self.training cannot be known; its effect is seen, and reaches the result of a training."""
    torch.manual_seed(0)
    model = Varied("scale").eval()
    [text] = autorep_fx.capture(model, X).training_differences
    assert text.startswith("in train mode outputs differ by ")
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 2, (8,)))] * 2
    config = {"training": {"epochs": 1}, "finetune": {"epochs": 0}}
    compiled = autorep_fx.transform(model, "10%", data=data, config=config)
    assert compiled.warnings[-1].startswith("training was not the model's own: in train mode outputs differ")


def test_statistics_that_are_updated_otherwise_are_an_error() -> None:
    """A captured norm with another momentum gives the same outputs and other statistics: never silently."""
    torch.manual_seed(0)
    model = Varied("none").eval()
    captured = autorep_fx.capture(model, X)
    [norm] = captured.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    norm.update_arg(6, 0.5)
    captured.recompile()
    with pytest.raises(InvariantError, match=r"norm\.running_mean, norm\.running_var(?s:.*)To fix: Update running"):
        training_differences(model, captured, autorep_fx.passes.inputs.ExampleInputs.of(X))


def test_obstacles_of_all_steps_are_listed_at_once() -> None:
    """A write to a buffer, a write seen through a view, and a median: three obstacles, each with its line."""

    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            part = x.flatten(1)
            x.add_(1)
            return F.relu(part) + x.flatten(1).median(1, keepdim=True).values

    with pytest.raises(UnsupportedModelError) as caught:
        autorep_fx.capture(Bad(), X)
    # The write to the buffer is an addition and a copy.
    words = ["writes to a parameter or buffer", "is a view that is used later", "a parameter or buffer", "no ONNX form"]
    assert all(word in text for word, text in zip(words, caught.value.obstacles, strict=True))
    assert len({text.split("test_capture_exported.py:")[1][:3] for text in caught.value.obstacles}) == 3


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.Dropout()])
def test_a_program_in_train_mode_is_named(layer: nn.Module) -> None:
    """Its outputs cannot be compared with anything; the structure alone can be captured."""
    model = nn.Sequential(nn.Conv2d(X.shape[1], 4, 3), layer, nn.ReLU())
    program = torch.export.export(model.train(), (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(UnsupportedModelError, match="exported in train mode"):
        autorep_fx.capture(program, X)
    assert autorep_fx.capture(program, X, verification="structure") is not None
