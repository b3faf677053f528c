"""Models and calls that a careless compiler gets silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autorep_fx
from autorep_fx.errors import ConfigError, DataError, OutputError, UnsupportedModelError
from nets import TinyNet, batches


class Apply(nn.Module):
    """A convolution, then a function."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampling_keeps_counts_per_sample(mode: str, tmp_path: Path) -> None:
    """Behind an interpolation the counts are those of one sample, whatever the example's batch."""
    model = Apply(lambda m, y: torch.relu(F.interpolate(y, scale_factor=2, mode=mode)))
    compiled = autorep_fx.transform(model, "50%", example_inputs=IMAGES)
    assert (compiled.original_comparisons, compiled.comparisons) == (1024, 512)
    assert compiled.export(tmp_path / "m.onnx").comparisons == 512


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, y: torch.relu(torch.relu(y)), [("relu", 256)]),
        (lambda m, y: torch.relu(F.relu6(y)), [("clip", 512)]),
        (lambda m, y: torch.relu(F.hardtanh(y)), [("clip", 512)]),
        (lambda m, y: (torch.relu(y), F.elu(y))[0], [("relu", 256)]),
        (lambda m, y: torch.clamp(y, 0.0, float("inf")), [("relu", 256)]),
    ],
)
def test_merged_and_dead_activations_are_counted_once(function: Any, expected: list[Any], tmp_path: Path) -> None:
    """A ReLU of something not negative, a ReLU behind a clip, an unused activation, an infinite bound."""
    model = Apply(function)
    compiled = autorep_fx.transform(model, "100%", example_inputs=IMAGES)
    assert [(s.kind, s.comparisons) for s in compiled.sites] == expected
    assert compiled.export(tmp_path / "m.onnx").comparisons == expected[0][1]
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_are_refused(layer: Any) -> None:
    """They compare inside one operation, which no count would see."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(4, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(x)[0])

    with pytest.raises(UnsupportedModelError, match="compares inside itself"):
        autorep_fx.transform(Recurrent(), "50%", example_inputs=torch.randn(2, 3, 4))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_norm_that_is_used_twice_trains_like_the_original(momentum: float | None) -> None:
    """Gradients, running statistics and the counter, over two steps."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=momentum)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), norm, nn.ReLU())
    gated = autorep_fx.prepare(model, "100%", example_inputs=IMAGES)
    model.train(), gated.train()
    for _ in range(2):
        for module in (model, gated):
            module.zero_grad()
            module(IMAGES).square().sum().backward()
    state = gated.network.state_dict()
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(model.state_dict()[name], state[name]), name
    assert torch.equal(dict(gated.network.named_parameters())["0.weight"].grad, model[0].weight.grad)


def test_a_batch_of_one_is_refused_where_a_norm_has_one_value_per_channel() -> None:
    """As nn.BatchNorm does; the running variance would become NaN."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    gated = autorep_fx.prepare(model, "100%", example_inputs=torch.randn(4, 4)).train()
    with pytest.raises(DataError, match="more than one value per channel"):
        gated(torch.randn(1, 4))
    assert torch.isfinite(gated.eval()(torch.randn(1, 4))).all()


@pytest.mark.parametrize("name", ["gates", "network", "module", "lowered", "folded", "autorep"])
def test_names_of_the_users_own_modules_do_not_collide(name: str, tmp_path: Path) -> None:
    """A submodule that is called like something of ours is saved, counted and loaded like any other."""
    torch.manual_seed(0)
    model = Apply(lambda m, y: torch.relu(m.get_submodule(name)(y)), **{name: nn.Conv2d(4, 4, 1)})
    compiled = autorep_fx.transform(model, "50%", example_inputs=IMAGES, out_dir=tmp_path)
    assert f"{name}.weight" in compiled.weights
    fresh = Apply(lambda m, y: torch.relu(m.get_submodule(name)(y)), **{name: nn.Conv2d(4, 4, 1)})
    assert torch.equal(autorep_fx.load(tmp_path, fresh)(IMAGES), compiled(IMAGES))
    assert autorep_fx.count_comparisons(compiled) == 128


def test_names_that_a_graph_needs_are_refused() -> None:
    """With the names."""
    with pytest.raises(UnsupportedModelError, match="attribute 'graph'"):
        autorep_fx.inspect(Apply(lambda m, y: y.relu(), graph=nn.ReLU()), IMAGES)


def test_distillation_of_numbers_is_no_softmax() -> None:
    """For (N, 1) outputs the distance is the relative squared error, not the zero of a softmax over one class."""
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    assert float(autorep_fx.kd_loss(student, teacher)) == pytest.approx(2.0 / 8.5)
    assert float(autorep_fx.kd_loss(student, student)) == 0


def test_losses_and_targets_that_do_not_fit_are_typed_errors() -> None:
    """Targets out of range, a loss that is no scalar or detached, a seed that is no integer, a model that is none."""
    model, data = TinyNet(), batches(count=1)
    with pytest.raises(DataError, match="Cross-entropy cannot be computed"):
        autorep_fx.transform(model, "10%", data=[(x, y + 10) for x, y in data])
    for loss in (lambda o, t: o, lambda o, t: 1.0, lambda o, t: o.detach().sum()):
        with pytest.raises(ConfigError, match="one number that depends on the outputs"):
            autorep_fx.transform(model, "10%", data=data, loss=loss)
    for seed in ("a", True, -1, 2**40):
        with pytest.raises(ConfigError, match="seed"):
            autorep_fx.transform(model, "10%", example_inputs=data[0][0], seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no torch\.nn\.Module"):
        autorep_fx.transform("model", "10%", example_inputs=data[0][0])  # type: ignore[arg-type]


def test_int32_targets_and_loaders_without_a_length_train() -> None:
    """Targets of any integer type; a DataLoader over an iterable data set."""

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            for x, y in batches(count=2):
                yield x, y.int()

    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    config = {"training": {"epochs": 1}, "finetune": {"epochs": 1}}
    assert autorep_fx.transform(TinyNet(), "10%", data=loader, config=config).comparisons == 52


def test_saving_over_an_older_result_leaves_nothing_of_it(tmp_path: Path) -> None:
    """Without an ONNX file in the new settings, the old one is gone, and load does not run it."""
    model, x = TinyNet().eval(), batches()[0][0]
    autorep_fx.transform(model, "100%", example_inputs=x, out_dir=tmp_path)
    autorep_fx.transform(model, "0%", example_inputs=x, out_dir=tmp_path, config={"outputs": {"onnx": False}})
    assert not (tmp_path / "model.onnx").exists()


def test_targets_that_are_no_files_are_not_replaced(tmp_path: Path) -> None:
    """A folder or a device of that name is refused, not renamed over."""
    compiled = autorep_fx.transform(TinyNet().eval(), "10%", example_inputs=batches()[0][0])
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError):
        compiled.export(tmp_path / "folder.onnx")
    with pytest.raises(OutputError):
        compiled.report(tmp_path / "folder.onnx")
    with pytest.raises(OutputError):
        compiled.save("a\0b")


def test_sites_behind_a_constant_are_told() -> None:
    """Degree 0 with nothing kept cuts the input off: the sites behind are named, not miscounted."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    config = {"sites": {"1": {"mode": "replace", "degree": 0}}}
    with pytest.raises(ConfigError, match="3 behind polynomials of degree 0"):
        autorep_fx.transform(model.eval(), "100%", example_inputs=torch.randn(4, 3, 8, 8), config=config)


def test_a_norm_of_batch_statistics_is_an_obstacle_to_export(tmp_path: Path) -> None:
    """It compiles in torch; the export, and inspect before it, name the norm."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(4, 3, 8, 8)
    [problem] = autorep_fx.inspect(model, x).problems
    assert problem.startswith("batch norm 1 ")
    compiled = autorep_fx.transform(model, "30%", example_inputs=x)
    with pytest.raises(UnsupportedModelError, match="depend on the other samples"):
        compiled.export(tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


class _Returns(nn.Module):
    """A linear layer and a ReLU, and whatever is made of them."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Any:
        return self.outputs(F.relu(self.linear(x)), x)


EXPORTED = {
    "labels": lambda y, x: y.argmax(1),
    "a mask": lambda y, x: y > 0.1,
    "none among them": lambda y, x: (y, None),
    "a dict with none": lambda y, x: {"logits": y * 2, "loss": None},
}


@pytest.mark.parametrize("name", EXPORTED)
def test_outputs_of_other_types_are_exported(name: str, tmp_path: Path) -> None:
    """Labels, masks, and None, which the file leaves out."""
    torch.manual_seed(0)
    model, x = _Returns(EXPORTED[name]).eval(), torch.randn(4, 6)
    compiled = autorep_fx.transform(model, "100%", example_inputs=x)
    with torch.no_grad():  # what lowering computed anew needs no gradient
        assert str(compiled(x)) == str(model(x))
    compiled.export(tmp_path / "model.onnx")


OBSTACLES = {
    "output [1] is of type int, not a tensor": lambda y, x: (y, 3),
    "output ['n'] is of type str, not a tensor": lambda y, x: {"y": y, "n": "name"},
    "output 0 of shape () has no batch axis": lambda y, x: y.sum(),
    "outputs of one sample depend on the other samples of its batch": lambda y, x: y - y.mean(0),
}


@pytest.mark.parametrize("text", OBSTACLES)
def test_obstacles_to_an_export_are_known_before_any_training(text: str, tmp_path: Path) -> None:
    """By inspect, by a training before its first step, and by the export of what was compiled without data."""
    model, x = _Returns(OBSTACLES[text]).eval(), torch.randn(4, 6)
    assert text in autorep_fx.inspect(model, x).problems
    steps: list[Any] = []
    with pytest.raises(UnsupportedModelError) as caught:
        autorep_fx.transform(
            model, "50%", data=[(x, torch.zeros(4))], loss=lambda y, t: t.sum(), callbacks=[steps.append]
        )
    assert text in caught.value.obstacles
    assert not steps
    with pytest.raises(UnsupportedModelError) as caught:
        autorep_fx.transform(model, "50%", example_inputs=x).export(tmp_path / "model.onnx")
    assert text in caught.value.obstacles


def test_equal_values_computed_twice_are_counted_as_the_file_computes_them(tmp_path: Path) -> None:
    """A shared layer called twice on one input gives two activations, in the plan and in the file."""
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.linear(x)) + torch.relu(self.linear(x))
            return y + x.norm(p=3, dim=1, keepdim=True) + x.norm(p=1, dim=1, keepdim=True)

    compiled = autorep_fx.transform(Twice().eval(), "100%", example_inputs=torch.randn(4, 6))
    assert compiled.export(tmp_path / "model.onnx").comparisons == compiled.comparisons


def test_scripted_models_are_refused_by_name() -> None:
    """With what to pass instead."""
    model = torch.nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval()
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(model)
    with pytest.raises(UnsupportedModelError, match="scripted or traced"):
        autorep_fx.inspect(scripted, torch.randn(4, 6))


def test_examples_with_gradients_are_detached(tmp_path: Path) -> None:
    """A leaf that requires gradients is an example like any other."""
    model = torch.nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    compiled = autorep_fx.transform(model, "50%", example_inputs=torch.randn(4, 6, requires_grad=True))
    assert compiled.export(tmp_path / "model.onnx").comparisons == 3
