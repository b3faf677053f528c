"""The networks have exactly the comparisons that they promise, and options and errors do what they say."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from autorep_fx.models_zoo import MODELS, create, input_shape
from autorep_fx.models_zoo.data import Batches, digits, random_shift
from autorep_fx.models_zoo.wide_resnet import WideResNet


@dataclass(frozen=True)
class Case:
    """A network, and what it must have."""

    name: str
    elements: int
    calls: int
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


CASES = (
    Case("resnet18", 491_520, 16),
    Case("resnet18", 557_056, 17, {"stem_relu": True}),
    Case("resnet18", 1_966_080, 16, {"image_size": 64}),
    Case("resnet18", 2_228_224, 17, {"image_size": 64, "stem_relu": True}),
    Case("resnet20", 188_416, 19),
    Case("resnet20", 172_032, 18, {"stem_relu": False}),
    Case("wide_resnet22_8", 1_359_872, 18),
    Case("wide_resnet22_8", 5_439_488, 18, {"image_size": 64}),
    Case("wide_resnet22_8", 1_392_640, 19, {"final_relu": True}),
    Case("vgg16_bn", 276_480, 13),
    Case("vgg16_bn", 276_480, 13, {"pool": "max"}),
    Case("vgg16_bn", 4 * 276_480, 13, {"image_size": 64}),
    Case("lenet", 6_508, 4),
    Case("digits_resnet", 4_480, 7),
    Case("digits_resnet", 3_456, 6, {"stem_relu": False}),
)


def relu_calls(model: nn.Module, x: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Output elements per sample of every ReLU call, counted by hooks, and the model's output."""
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _module, _inputs, out: sizes.append(out[0].numel()))
    with torch.no_grad():
        return sizes, model.eval()(x)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_relu_elements(case: Case) -> None:
    """One sample's forward pass computes exactly the stated ReLU elements, in the stated number of calls."""
    model = create(case.name, **case.options)
    shape = input_shape(case.name, **case.options)
    sizes, out = relu_calls(model, torch.zeros(1, *shape))
    assert (sum(sizes), len(sizes)) == (case.elements, case.calls)
    assert out.shape == (1, 10)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", MODELS)
def test_common_options(name: str) -> None:
    """Every constructor takes num_classes, in_channels and image_size, and accepts that input."""
    options = {"num_classes": 7, "in_channels": 2, "image_size": 32}
    assert input_shape(name, **options) == (2, 32, 32)
    with torch.no_grad():
        assert create(name, **options).eval()(torch.zeros(1, 2, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("name", MODELS)
def test_no_dropout_and_no_max_pool_by_default(name: str) -> None:
    """By default nothing is random in training mode, and nothing but ReLU compares."""
    kinds = {type(module) for module in create(name).modules()}
    assert not kinds & {nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d}


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"lenet"}))
def test_activations_are_distinct_modules(name: str) -> None:
    """Each call has its own nn.ReLU, so that a site can be named by its module."""
    model = create(name)
    sizes, _ = relu_calls(model, torch.zeros(1, *input_shape(name)))
    assert len(sizes) == sum(isinstance(module, nn.ReLU) for module in model.modules())


def test_lenet_shares_one_relu() -> None:
    """LeNet calls one nn.ReLU four times."""
    assert sum(isinstance(module, nn.ReLU) for module in create("lenet").modules()) == 1


def test_vgg_max_pool_comparisons() -> None:
    """Max pooling, when asked for, adds 31,232 outputs of three comparisons each at 32×32."""
    model = create("vgg16_bn", pool="max")
    outputs: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda _module, _inputs, out: outputs.append(out[0].numel()))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    assert sum(outputs) == 31_232


def test_parameter_counts() -> None:
    """The sizes agree with the published ones (0.27 M, 11.2 M, 17.2 M); the digits network stays small."""
    count = {name: sum(p.numel() for p in create(name).parameters()) for name in MODELS}
    assert count["resnet20"] == 272_474
    assert count["resnet18"] == 11_173_962
    assert 17.1e6 < count["wide_resnet22_8"] < 17.3e6
    assert 20_000 < count["digits_resnet"] < 60_000


def test_global_pooling_takes_other_sizes() -> None:
    """A network with global average pooling runs on another size than it was made for."""
    model = create("digits_resnet").eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 16, 12)).shape == (2, 10)


def test_digits_network_learns() -> None:
    """Ten epochs of AdamW with a cosine schedule classify over 95 % of the held-out digits."""
    torch.manual_seed(0)
    data, model = digits(), create("digits_resnet")
    batches = Batches(data.train, 64, augment=random_shift(1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10 * len(batches))
    for _ in range(10):
        for x, y in batches:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        right = model.eval()(data.test.x).argmax(1) == data.test.y
    assert right.double().mean() > 0.95


def test_seed_decides_the_weights() -> None:
    """Initialisation draws from torch's global generator alone."""
    torch.manual_seed(5)
    one = create("digits_resnet").state_dict()
    torch.manual_seed(5)
    two = create("digits_resnet").state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_initial_activations_are_in_scale() -> None:
    """With Kaiming initialisation a fresh network in training mode gives logits of order one."""
    torch.manual_seed(0)
    model = create("digits_resnet").train()
    with torch.no_grad():
        spread = model(torch.randn(64, 1, 8, 8)).std().item()
    assert 0.1 < spread < 10


def test_input_shapes_match_the_signatures() -> None:
    """The table that answers without importing torch has the constructors' own defaults."""
    for name in MODELS:
        explicit = {
            key: parameter.default
            for key, parameter in inspect.signature(MODELS[name]).parameters.items()
            if key in {"in_channels", "image_size"}
        }
        assert len(explicit) == 2
        assert input_shape(name) == input_shape(name, **explicit)


def test_import_is_lazy() -> None:
    """Importing the zoo, listing it and asking for a shape import no torch."""
    code = (
        "import sys; from autorep_fx.models_zoo import MODELS, input_shape; "
        "assert list(MODELS) and input_shape('lenet', image_size=20) == (1, 20, 20); "
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass(frozen=True)
class Refusal:
    """A wrong call, and what its message must say."""

    name: str
    options: dict[str, object]
    reason: str


REFUSALS = {
    "near name": Refusal("resnet81", {}, r"Unknown model 'resnet81'.*Did you mean resnet18 .*Known: resnet18, "),
    "far name": Refusal("zzz", {}, r"Unknown model 'zzz'\. Known: resnet18, .*digits_resnet"),
    "near option": Refusal("resnet18", {"stem_relo": 1}, r"no option 'stem_relo'.*Did you mean stem_relu\?"),
    "other model's option": Refusal("lenet", {"pool": "max"}, r"no option 'pool'.*Known: num_classes, in_cha"),
    "classes": Refusal("resnet20", {"num_classes": 0}, r"num_classes must be a positive integer, got 0"),
    "channels": Refusal("lenet", {"in_channels": 1.5}, r"in_channels must be a positive integer, got 1\.5"),
    "size": Refusal("digits_resnet", {"image_size": True}, r"image_size must be a positive integer, got True"),
    "pooling": Refusal("vgg16_bn", {"pool": "mean"}, r"pool must be 'avg' or 'max', got 'mean'"),
    "vgg size": Refusal("vgg16_bn", {"image_size": 40}, r"multiple of 32 .*got 40"),
    "lenet size": Refusal("lenet", {"image_size": 11}, r"12 or more, got 11"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_create_refuses(refusal: Refusal) -> None:
    """A wrong name, option or value is a ValueError that says what is known or allowed."""
    with pytest.raises(ValueError, match=refusal.reason):
        create(refusal.name, **refusal.options)


@pytest.mark.parametrize("key", ["near name", "near option", "channels", "size"])
def test_input_shape_refuses(key: str) -> None:
    """`input_shape` refuses with the same words as `create`."""
    refusal = REFUSALS[key]
    with pytest.raises(ValueError, match=refusal.reason):
        input_shape(refusal.name, **refusal.options)


def test_wide_resnet_depth() -> None:
    """A depth that is not 6·n + 4 is refused."""
    with pytest.raises(ValueError, match=r"6·n \+ 4 .* got 20"):
        WideResNet(20, 1, num_classes=10, in_channels=3, final_relu=False)
