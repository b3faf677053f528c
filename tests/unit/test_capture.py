"""Capture: what is kept, what is refused, and that the captured module trains like the original."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep_fx.errors import DataError, UnsupportedModelError
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.functionalize import FunctionalizePass, mutates
from autorep_fx.passes.graphs import aten_name
from autorep_fx.passes.stages import check_captured


def Model(function: Callable[..., Any], **parts: Any) -> Any:  # noqa: N802 - stands for a class
    """A model with ``function`` as its forward."""
    # torch records the lines of functions that are called forward.
    forward = FunctionType(
        function.__code__.replace(co_name="forward"), function.__globals__, "forward", None, function.__closure__
    )
    model = type("Model", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(model, name, part)
    return model


def example(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (3, 4, 5, 5)), generator=torch.Generator().manual_seed(seed))


def line_of(function: Callable[..., Any], text: str) -> str:
    """``file.py:line`` of the line of ``function`` that holds ``text``."""
    lines, start = inspect.getsourcelines(function)
    [offset] = [i for i, line in enumerate(lines) if text in line]
    return f"test_capture.py:{start + offset}"


# In-place operations.


def residual(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    identity = y
    y.relu_()
    z = y * 3 + identity  # the identity has been written to as well
    z += 1
    return z.mul_(2)


def through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    flat = y.flatten(1)
    flat += 1.0
    return flat.relu_()


def of_a_part(m: Any, x: Tensor) -> Tensor:
    part = m.conv(x)[:, 1:3]
    part.mul_(2)
    return part.relu()


def of_the_input(m: Any, x: Tensor) -> Tensor:
    x.add_(1.0)
    return m.conv(x).relu_() + x


def other_activations(m: Any, x: Tensor) -> Tensor:
    y = F.leaky_relu_(m.conv(x), 0.1) + m.conv(x).clamp_(-1, 2).sub_(0.5)
    return y + F.silu(m.conv(x), inplace=True) + F.hardtanh_(m.conv(x))


def a_wider_operand(m: Any, x: Tensor) -> Tensor:
    return m.conv(x).add_(torch.full((5,), 0.25, dtype=torch.float64)).relu_()


@pytest.mark.parametrize(
    "function", [residual, through_a_view, of_a_part, of_the_input, other_activations, a_wider_operand]
)
def test_safe_in_place_calls_become_functional(function: Callable[..., Any]) -> None:
    """No write is left, and outputs and gradients are bit-equal at other batch sizes too."""
    torch.manual_seed(0)
    model = Model(function, conv=nn.Conv2d(4, 4, 1))
    captured = capture_graph(model, example())
    assert not [node.name for node in captured.graph.nodes if mutates(node)]
    check_captured(captured)
    for size in (1, 2, 5):
        found, expected = captured(example(size, 4, 5, 5)), model(example(size, 4, 5, 5))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        gradients = [
            torch.autograd.grad(y.square().sum(), list(m.parameters()))
            for y, m in ((found, captured), (expected, model))
        ]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_callers_tensor_is_no_longer_written() -> None:
    """A write to a model input becomes functional."""
    captured = capture_graph(Model(of_the_input, conv=nn.Conv2d(4, 4, 1)), example())
    x = example()
    captured(x)
    assert torch.equal(x, example())


def test_functionalising_twice_changes_nothing() -> None:
    """The pass is honest: captured graphs need no rewrite."""
    captured = capture_graph(Model(residual, conv=nn.Conv2d(4, 4, 1)), example())
    assert FunctionalizePass()(captured).modified is False


def write_under_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    flat = y.view(y.shape[0], -1)
    y.relu_()  # unsafe
    return flat


def write_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.transpose(1, 2).mul_(2)  # unsafe
    return y


def write_under_a_part(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    part = y[:, :2]
    y.add_(1)  # unsafe
    return part


def write_under_an_output(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    out = y.permute(0, 2, 3, 1)
    y.relu_()  # unsafe
    return out, y


def write_under_a_dropout(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    dropped = m.dropout(y)
    y.relu_()  # unsafe
    return dropped


@pytest.mark.parametrize(
    "function",
    [write_under_a_view, write_through_a_view, write_under_a_part, write_under_an_output, write_under_a_dropout],
)
def test_a_write_that_is_seen_through_a_view_is_an_obstacle(function: Callable[..., Any]) -> None:
    """It is refused and the obstacle names the line of the user's code."""
    model = Model(function, conv=nn.Conv2d(4, 4, 1), dropout=nn.Dropout(0.5))
    with pytest.raises(UnsupportedModelError, match="is a view that is used later") as caught:
        capture_graph(model, example())
    assert line_of(function, "# unsafe") in caught.value.obstacles[0]


def count_calls(m: Any, x: Tensor) -> Tensor:
    m.calls.add_(1)  # write
    return m.conv(x)


def moving_average(m: Any, x: Tensor) -> Tensor:
    m.calls = 0.9 * m.calls + x.mean()
    return m.conv(x) + m.calls


def average_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.calls.mul_(0.9)  # write
    return m.conv(x)


@pytest.mark.parametrize("function", [count_calls, moving_average, average_without_gradients])
def test_a_buffer_written_in_forward_is_an_obstacle(function: Callable[..., Any]) -> None:
    """What a compiled model could not keep between calls is refused by name."""
    model = Model(function, conv=nn.Conv2d(4, 4, 1))
    model.register_buffer("calls", torch.zeros(()))
    with pytest.raises(UnsupportedModelError, match="parameter or buffer") as caught:
        capture_graph(model, example())
    if "# write" in inspect.getsource(function):
        assert line_of(function, "# write") in caught.value.obstacles[0]


def test_all_obstacles_are_listed() -> None:
    """Two unsafe writes are two obstacles of one error."""

    def twice(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        flat = y.flatten(1)
        y.relu_()
        y.add_(1)
        return flat

    with pytest.raises(UnsupportedModelError) as caught:
        capture_graph(Model(twice, conv=nn.Conv2d(4, 4, 1)), example())
    assert len(caught.value.obstacles) == 2
    assert "relu_" in caught.value.obstacles[0]
    assert "add_" in caught.value.obstacles[1]


# Blocks.


def without_gradients(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x).relu()
    with torch.no_grad():
        scale = m.conv(y).relu().mean((2, 3), keepdim=True)
        scale = scale.add_(1.0)
    return y * scale


def nested_blocks(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        y = m.conv(x).relu()
        with torch.enable_grad():
            z = m.conv(y).relu()
        w = z * 2
    return m.conv(w) + x, m.conv(y)


def disabled_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = m.conv(x).relu()
    return m.conv(y)


def both(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        y = m.conv(x).relu()
    return m.conv(y) + x


@pytest.mark.parametrize("function", [without_gradients, nested_blocks, disabled_autocast, both])
def test_blocks_are_inlined(function: Callable[..., Any]) -> None:
    """Their ReLUs are in the flat graph; outputs and gradients, also to the input, equal the original's."""
    torch.manual_seed(0)
    model = Model(function, conv=nn.Conv2d(4, 4, 1))
    captured = capture_graph(model, example())
    check_captured(captured)
    relus = sum(aten_name(node) == "aten.relu.default" for node in captured.graph.nodes)
    assert relus == inspect.getsource(function).count(".relu()")
    results = []
    for module in (captured, model):
        x = example(2, 4, 5, 5).requires_grad_()
        outputs = module(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = torch.autograd.grad(sum(y.square().sum() for y in outputs), [x, *module.parameters()])
        results.append((*outputs, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_autocast_block_computes_in_full_precision() -> None:
    """Inlined, it equals the model without autocast exactly, and the model with it up to bfloat16."""

    def mixed(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=m.mixed):
            return m.conv(x).relu().float()

    torch.manual_seed(0)
    model = Model(mixed, conv=nn.Conv2d(4, 4, 1), mixed=True)
    captured = capture_graph(model, example())
    check_captured(captured)
    torch.testing.assert_close(captured(example()), model(example()), rtol=2e-2, atol=2e-2)
    model.mixed = False
    assert torch.equal(captured(example()), model(example()))
    recorded = {n.meta["val"].dtype for n in captured.graph.nodes if isinstance(n.meta.get("val"), Tensor)}
    assert recorded == {torch.float32}


def test_a_captured_module_can_change_its_dtype() -> None:
    """The checks that torch leaves at casts are gone: with weights in float64 the module still runs."""

    def function(m: Any, x: Tensor) -> Tensor:
        return m.conv(x).relu().type_as(x).to(x.device) * 2

    captured = capture_graph(Model(function, conv=nn.Conv2d(4, 4, 1)), example())
    expected = captured(example())
    assert "_assert" not in captured.code
    found = captured.double()(example().double())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_hidden_write_without_gradients_is_an_obstacle() -> None:
    """A write under no_grad to a value from outside: its gradient would ignore the write, so it is refused."""

    def function(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        with torch.no_grad():
            y.view(-1).mul_(3)  # unsafe
        return y.relu()

    with pytest.raises(UnsupportedModelError, match="without gradients") as caught:
        capture_graph(Model(function, conv=nn.Conv2d(4, 4, 1)), example())
    assert line_of(function, "# unsafe") in caught.value.obstacles[0]


# Inputs and outputs.


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_example_batch_gives_a_dynamic_one(size: int) -> None:
    """A batch of one is repeated first; the result takes every batch."""
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    captured = capture_graph(model, example(size, 4, 5, 5))
    check_captured(captured)
    for batch in (1, 2, 7):
        assert torch.equal(captured(example(batch, 4, 5, 5)), model(example(batch, 4, 5, 5)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0, *, bias: Tensor | None = None) -> Any:
        total = F.relu(self.a(left) + self.b(right)) * scale
        total = total if bias is None else total + bias
        return {"sum": total, "parts": [left * 2, (right, total.relu())]}


@pytest.mark.parametrize(
    "inputs",
    [
        (example(3, 4), example(3, 2)),
        {"left": example(3, 4), "right": example(3, 2)},
        {"right": example(1, 2), "left": example(1, 4), "bias": example(1, 3)},
    ],
    ids=["positional", "keywords", "keyword-only and batch 1"],
)
def test_several_inputs_and_nested_outputs(inputs: Any) -> None:
    """The captured module takes the inputs as the model does, and returns the same nesting."""
    model = Pair()
    captured = capture_graph(model, inputs)
    found, expected = (m(*inputs) if isinstance(inputs, tuple) else m(**inputs) for m in (captured, model))
    assert list(found) == ["sum", "parts"]
    assert isinstance(found["parts"], list)
    assert isinstance(found["parts"][1], tuple)
    pairs = [
        (found["sum"], expected["sum"]),
        (found["parts"][0], expected["parts"][0]),
        *zip(found["parts"][1], expected["parts"][1], strict=True),
    ]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_forward_of_any_arguments() -> None:
    """Wrappers that pass on what they are given are captured too."""

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
            return self.inner(*args, **kwargs)

    model = Wrapper(Pair())
    captured = capture_graph(model, (example(3, 4), example(3, 2)))
    found, expected = (m(example(5, 4), example(5, 2))["sum"] for m in (captured, model))
    assert torch.equal(found, expected)


def test_an_input_without_a_batch_axis_stays_as_it_is() -> None:
    """With one sample, the batch grows to two; another input of two rows has no batch all the same."""

    class Weighted(nn.Module):
        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return F.relu(x) * weights.sum()

    captured = capture_graph(Weighted(), (example(1, 4), example(2)))
    shapes = [tuple(node.meta["val"].shape) for node in captured.graph.nodes if node.op == "placeholder"]
    assert shapes[1] == (2,)
    assert isinstance(shapes[0][0], torch.SymInt)


def test_names_and_frozen_parameters_survive() -> None:
    """Parameters keep names, values and requires_grad."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    model[0].weight.requires_grad_(False)
    captured = capture_graph(model, example())
    assert {n: p.requires_grad for n, p in captured.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert captured.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(captured.state_dict()[n], v) for n, v in model.state_dict().items())


def fingerprint(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: (id(value), value.clone(), value._version) for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks), m.__dict__.keys())
            for m in model.modules()
        ],
        "parameters": [(id(p), p.requires_grad, p.grad) for p in model.parameters()],
    }


def test_the_argument_is_never_changed() -> None:
    """Tensors, their versions, training flags, hooks, attributes and gradients are as before."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout())
    model[1].eval()
    calls: list[int] = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    x = example()
    before = fingerprint(model)
    captured = capture_graph(model, x)
    captured.train()
    captured(x).sum().backward()
    after = fingerprint(model)
    for name, (_, value, version) in before["state"].items():
        assert torch.equal(value, after["state"][name][1])
        assert version == after["state"][name][2]
    assert all(before[key] == after[key] for key in ("modes", "hooks", "parameters"))
    assert torch.equal(x, example())
    model(x)
    assert calls


def test_capturing_a_captured_module_copies_it() -> None:
    """The copy is in eval mode and independent."""
    captured = capture_graph(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), example()).train()
    again = capture_graph(captured, example())
    assert captured.training
    assert not again.training
    captured(example())
    assert not torch.equal(captured.state_dict()["1.running_mean"], again.state_dict()["1.running_mean"])


# Refusals.


def branch(m: Any, x: Tensor) -> Tensor:
    return m.conv(x) if x.sum() > 0 else x


def loop(m: Any, x: Tensor) -> Tensor:
    for _ in range(int(x.abs().max().item())):
        x = m.conv(x)
    return x


@pytest.mark.parametrize("function", [branch, loop])
def test_data_dependent_control_flow_is_refused(
    function: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the line that branches, and torch's dump of the graph stays away from the terminal."""
    with pytest.raises(UnsupportedModelError, match="it branches on the value of a tensor") as caught:
        capture_graph(Model(function, conv=nn.Conv2d(4, 4, 1)), example())
    assert caught.value.fix
    [obstacle] = caught.value.obstacles
    assert "test_capture.py:" in obstacle
    assert capsys.readouterr().err == ""


def test_control_flow_operations_are_refused() -> None:
    """torch.cond is a higher-order operation that a flat graph cannot hold."""

    def function(m: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: v.relu(), lambda v: v.sin(), (x,))

    with pytest.raises(UnsupportedModelError, match="cond"):
        capture_graph(Model(function), example())


def test_a_model_that_does_not_copy_is_refused() -> None:
    """An open handle in an attribute is named as the obstacle."""
    model = Model(lambda m, x: x, handle=(i for i in range(3)))
    with pytest.raises(UnsupportedModelError, match="cannot be copied"):
        capture_graph(model, example())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.randn(2, 3, 5, 5), "2, 3, 5, 5"),
        (example()[:0], "batch of 0"),
        (torch.full((2, 4, 5, 5), float("nan")), "NaN"),
        (torch.full((2, 4, 5, 5), float("inf")), "infinity"),
        ((example(), example()), "fails on the example inputs"),
        ({"y": example()}, "fails on the example inputs"),
        (example().double(), "dtype"),
        (5, "int"),
        (torch.tensor(3.0), "no tensor with a batch axis"),
        ((), "no tensor with a batch axis"),
    ],
    ids=["channels", "empty", "nan", "inf", "too many", "keyword", "dtype", "no tensor", "scalar", "nothing"],
)
def test_bad_examples_are_data_errors(inputs: Any, words: str) -> None:
    """A wrong example is told from a model that cannot be captured, with its shape and what to pass."""
    with pytest.raises(DataError, match=words) as caught:
        capture_graph(Model(lambda m, x: m.conv(x), conv=nn.Conv2d(4, 4, 1)), inputs)
    assert caught.value.fix


# Training.


class Net(nn.Module):
    """Convolution, norm, ReLU and a linear layer; the norm is called twice where it is shared."""

    def __init__(self, norm: nn.Module, calls: int = 1, drop: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), norm, nn.Linear(4, 2)
        self.drop = drop or nn.Identity()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(self.calls):
            x = F.relu(self.norm(x))
        return self.head(self.drop(x * 1.0).mean((2, 3)))


class Frozen(nn.BatchNorm2d):
    """A norm that stays in eval mode."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


NETS: dict[str, Callable[[], nn.Module]] = {
    "momentum": lambda: Net(nn.BatchNorm2d(4, momentum=0.1)),
    "cumulative": lambda: Net(nn.BatchNorm2d(4, momentum=None)),
    "untracked": lambda: Net(nn.BatchNorm2d(4, track_running_stats=False)),
    "no affine": lambda: Net(nn.BatchNorm2d(4, affine=False)),
    "shared": lambda: Net(nn.BatchNorm2d(4), calls=2),
    "shared cumulative": lambda: Net(nn.BatchNorm2d(4, momentum=None), calls=2),
    "frozen": lambda: Net(Frozen(4)),
    "instance": lambda: Net(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "instance untracked": lambda: Net(nn.InstanceNorm2d(4)),
    "dropout 0": lambda: Net(nn.BatchNorm2d(4), drop=nn.Dropout(p=0.0)),
    "dropout": lambda: Net(nn.BatchNorm2d(4), drop=nn.Dropout(p=0.5)),
    "channel dropout": lambda: Net(nn.BatchNorm2d(4), drop=nn.Dropout2d(p=0.5)),
    "alpha dropout": lambda: Net(nn.BatchNorm2d(4), drop=nn.AlphaDropout(p=0.5)),
    "in-place dropout": lambda: Net(nn.BatchNorm2d(4), drop=nn.Dropout(p=0.5, inplace=True)),
}


def train(module: nn.Module, steps: int, seed: int = 0) -> list[Tensor]:
    """Outputs, gradients and the state after every step of SGD, in training mode, then outputs in eval mode."""
    torch.manual_seed(seed)  # for the dropout
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    record: list[Tensor] = []
    for step in range(steps):
        module.train()
        optimizer.zero_grad()
        output = module(example(4, 3, 6, 6, seed=step))
        output.square().mean().backward()
        record += [output.detach().clone()]
        record += [p.grad.clone() for _, p in sorted(module.named_parameters()) if p.grad is not None]
        optimizer.step()
        module.eval()
        record += [module(example(2, 3, 6, 6, seed=99)).detach()]
        record += [value.clone() for _, value in sorted(module.state_dict().items())]
    return record


@pytest.mark.parametrize("name", NETS)
def test_training_is_bit_equal(name: str) -> None:
    """Outputs, gradients, running statistics and counters equal the original's in every bit over four steps."""
    torch.manual_seed(1)
    model = NETS[name]()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    captured = capture_graph(model, example(2, 3, 6, 6))
    found, expected = train(captured, 4), train(model, 4)
    assert len(found) == len(expected)
    differing = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not torch.equal(a, b)]
    assert differing == []
    assert not all(torch.equal(value, start[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_a_copy_keeps_behaviour_and_mode(name: str, training: bool) -> None:
    """A deep copy is in the same mode, trains on like the original, and shares nothing with it."""
    torch.manual_seed(1)
    captured = capture_graph(NETS[name](), example(2, 3, 6, 6))
    train(captured, 1)
    captured.train(training)
    duplicate = copy.deepcopy(captured)
    assert duplicate.training is training
    torch.manual_seed(3)
    found = duplicate(example(4, 3, 6, 6))
    torch.manual_seed(3)
    assert torch.equal(found, captured(example(4, 3, 6, 6)))
    before = {key: value.clone() for key, value in captured.state_dict().items()}
    first = train(duplicate, 2)
    assert all(torch.equal(value, captured.state_dict()[key]) for key, value in before.items())
    assert all(torch.equal(a, b) for a, b in zip(train(captured, 2), first, strict=True))


def test_a_dropout_that_is_always_on_stays_on() -> None:
    """F.dropout(training=True) drops in eval mode too, before and after a change of mode."""

    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(F.relu(x), 0.5, training=True)

    captured = capture_graph(Always(), torch.ones(2, 64))
    for module in (captured, captured.train(), captured.eval()):
        assert set(module(torch.ones(2, 64)).unique().tolist()) == {0.0, 2.0}


def test_modes_change_only_what_they_should() -> None:
    """In eval mode the statistics stay; in training they move; back in eval they stay again."""
    captured = capture_graph(Net(nn.BatchNorm2d(4)), example(2, 3, 6, 6))

    def moves() -> bool:
        before = captured.state_dict()["norm.running_mean"].clone()
        captured(example(2, 3, 6, 6))
        return not torch.equal(before, captured.state_dict()["norm.running_mean"])

    assert not captured.training
    assert not moves()
    captured.train()
    assert moves()
    captured.eval()
    assert not moves()
    assert captured.state_dict()["norm.num_batches_tracked"] == 1


class _WritesSlices(nn.Module):
    """Fills regions of a mask, as Swin's shifted windows do, and adds to a row of a copy of the input."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(4, 6)
        count = 1
        for rows in (slice(0, 2), slice(2, 4)):
            for columns in (slice(0, 3), slice(3, None)):
                mask[rows, columns] = count
                count += 1
        y = x.clone()
        y[:, 1, ::2] += 10
        y[:, 0].mul_(2)
        y[:, 2] = y[:, 3] * 3
        y[:, 3, 1:3] = y[:, 0, :1]
        return torch.relu(y + mask)


def test_writes_to_slices_are_carried_into_the_whole() -> None:
    """Regions and rows, strided ones too: outputs and gradients equal the original's, and nothing is left in place."""
    x = torch.randn(3, 4, 6)
    captured = capture_graph(_WritesSlices(), x)
    assert not any(mutates(node) for node in captured.graph.nodes)
    for batch in (1, 3, 5):
        x = torch.randn(batch, 4, 6, requires_grad=True)
        ours, theirs = captured(x), _WritesSlices()(x)
        assert torch.equal(ours, theirs)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)]
        assert torch.equal(*gradients)
