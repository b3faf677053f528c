"""Models by name: each library's, what it gives as the size of its inputs, and what is told where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from autorep_fx.config import ModelConfig
from autorep_fx.errors import ConfigError
from autorep_fx.loading import load_model
from autorep_fx.model_specs import build_model, example_inputs
from nets import TinyNet


class Net(torch.nn.Module):
    """What the libraries below make: it keeps how it was asked for."""

    def __init__(self, **asked: Any) -> None:
        super().__init__()
        self.asked = asked


def _fake(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    """A library that is installed as far as imports can tell."""
    module = ModuleType(name)
    module.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def _shapes(spec: str, model: torch.nn.Module, *texts: str) -> list[tuple[int, ...]]:
    return [tuple(example.shape[1:]) for example in example_inputs(spec, model, texts)]


def test_torchvision_models_are_made_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights, not of a backbone either; the usual size, which videos do not have; near names are told."""

    def make(name: str) -> Callable[..., Net]:
        if name == "fcn":
            return lambda *, weights=None, weights_backbone="a download": Net(
                weights=weights, weights_backbone=weights_backbone
            )
        return lambda *, weights="a download", **options: Net(weights=weights, **options)

    models = SimpleNamespace(
        list_models=lambda: ["fcn", "inception_v3", "resnet18"], get_model_builder=make,
        get_model=lambda name, **options: make(name)(**options),
    )  # fmt: skip
    _fake(monkeypatch, "torchvision", models=models)
    model = build_model("torchvision:resnet18", {"num_classes": 7})
    assert (model.asked, model.training) == ({"weights": None, "num_classes": 7}, False)
    assert build_model("torchvision:fcn").asked == {"weights": None, "weights_backbone": None}
    assert _shapes("torchvision:resnet18", model) == [(3, 224, 224)]
    assert _shapes("torchvision:inception_v3", build_model("torchvision:inception_v3")) == [(3, 299, 299)]
    monkeypatch.setattr(Net, "__module__", "torchvision.models.video.resnet")
    _fake(monkeypatch, "torchvision.models.video.resnet")
    with pytest.raises(ConfigError, match="gives no shape"):
        _shapes("torchvision:resnet18", model)
    with pytest.raises(ConfigError, match=r"Did you mean 'resnet18'\?"):
        build_model("torchvision:resnet81")


def test_timm_models_have_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default_cfg says which; an explicit one wins; one without asks for it."""

    def create(name: str, **options: Any) -> Net:
        model = Net(**options)
        if name == "vit":
            model.default_cfg = {"input_size": (3, 256, 192)}
        return model

    _fake(monkeypatch, "timm", is_model=lambda name: name in ("vit", "rnn"), list_models=lambda: ["vit", "rnn"],
          create_model=create)  # fmt: skip
    model = load_model(ModelConfig(spec="timm:vit", args={"num_classes": 3}))
    assert model.asked == {"pretrained": False, "num_classes": 3}
    assert _shapes("timm:vit", model) == [(3, 256, 192)]
    assert _shapes("timm:vit", model, "3x8x8", "int64:5") == [(3, 8, 8), (5,)]
    assert [example.dtype for example in example_inputs("timm:vit", model, ["float64:2", "int64:5"])] == [
        torch.float64, torch.int64,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="Pass that of one sample"):
        _shapes("timm:rnn", build_model("timm:rnn"))
    with pytest.raises(ConfigError, match="Did you mean 'vit'"):
        build_model("timm:vits")


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A library with one image configuration, one text configuration, and files of either."""

    class ViTConfig(SimpleNamespace):
        pass

    class BertConfig(SimpleNamespace):
        pass

    def model(kind: str) -> Callable[[Any], Net]:
        def make(config: Any) -> Net:
            if kind == "image" and not isinstance(config, ViTConfig):
                raise ValueError("Unrecognized configuration class")
            net = Net(kind=kind)
            net.config = config
            return net

        return make

    def read(path: str, **options: Any) -> Any:
        assert (options.pop("local_files_only"), options.pop("trust_remote_code")) == (True, False)
        if not Path(path).exists():
            raise OSError("We couldn't connect\nand more")
        return ViTConfig(image_size=[16, 32], num_channels=1, architectures=["MyNet"], **options)

    return _fake(
        monkeypatch, "transformers", ViTConfig=ViTConfig, BertConfig=BertConfig, MyNet=model("own"),
        CONFIG_MAPPING={"vit": ViTConfig, "bert": BertConfig}, AutoConfig=SimpleNamespace(from_pretrained=read),
        AutoModel=SimpleNamespace(from_config=model("plain")),
        AutoModelForImageClassification=SimpleNamespace(from_config=model("image")),
    )  # fmt: skip


@pytest.mark.usefixtures("transformers")
def test_hugging_face_configurations(tmp_path: Path) -> None:
    """By class, by model type, and from a file, whose architecture is made; never from the network."""
    size = {"image_size": 8, "num_channels": 3}
    for name in ("ViTConfig", "vit"):
        model = build_model(f"hf:{name}", size)
        assert (model.asked, _shapes(f"hf:{name}", model)) == ({"kind": "image"}, [(3, 8, 8)])
    text = build_model("hf:bert")
    assert text.asked == {"kind": "plain"}
    with pytest.raises(ConfigError, match="gives no shape"):
        _shapes("hf:bert", text)
    model = build_model(f"hf:{tmp_path}")
    assert (model.asked, _shapes("hf:any", model)) == ({"kind": "own"}, [(1, 16, 32)])
    with pytest.raises(ConfigError, match="There is no configuration at") as caught:
        build_model("hf:someone/model")
    assert caught.value.received == "We couldn't connect"
    with pytest.raises(ConfigError, match="Did you mean 'ViTConfig'"):
        build_model("hf:VitConfig")


@pytest.mark.parametrize(
    ("spec", "library"), [("torchvision:resnet18", "torchvision"), ("timm:a", "timm"), ("hf:b", "transformers")]
)
def test_a_library_that_is_not_installed_gives_the_command(
    spec: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one whose build does not fit, with the cause."""
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there: the import fails at this name
    with pytest.raises(ConfigError, match=f"Run: pip install {library}"):
        build_model(spec)

    def broken(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("autorep_fx.model_specs.importlib.import_module", broken)
    with pytest.raises(ConfigError, match="cannot be imported") as caught:
        build_model(spec)
    assert "nms" in str(caught.value.received)


@pytest.mark.parametrize("text", ["", "3x", "3xax8", "0x2", "int63:4", "-1x2", "nn:4"])
def test_shapes_that_are_none(text: str) -> None:
    """Each is told with an example of the form."""
    with pytest.raises(ConfigError, match="Write"):
        example_inputs("nets:TinyNet", TinyNet(), [text])


def failing() -> nn.Module:
    """A factory with a defect."""
    raise KeyError("width")


def test_a_factory_that_fails_says_where() -> None:
    with pytest.raises(ConfigError, match="cannot be made") as caught:
        build_model(f"{__name__}:failing")
    assert "KeyError: 'width'" in str(caught.value) and "test_model_specs.py:" in str(caught.value)
