"""What the cost model predicts is what the engine sends: bytes and messages, query by query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import autorep_fx
from autorep_fx.cost.predict import Prediction, predict_session
from autorep_fx.cost.primitives import secure_work
from autorep_fx.cost.profile import load_profile
from autorep_fx.models_zoo import create
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.results import Step
from autorep_fx.runtime.secure.simulate import SimulatedSession
from autorep_fx.runtime.secure.split import split_model
from onnx_models import save

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["element", "channel"])
def lenet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo's LeNet with a tenth of its gates kept."""
    path = tmp_path_factory.mktemp("lenet") / "m.onnx"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(8, 1, 28, 28)
        config = {"gates": {"granularity": request.param}}
        gated = autorep_fx.prepare(create("lenet").eval(), "10%", example_inputs=x, config=config)
        autorep_fx.calibrate(gated, [(x, torch.zeros(8, dtype=torch.long))])
        autorep_fx.lower(autorep_fx.project(gated)).export(path)
    return path


def _session(
    path: Path, protocol: str, batches: list[int], shape: tuple[int, ...]
) -> list[tuple[Prediction, Step, int]]:
    """Per query: what is predicted, what it took, and the bytes that opened weights."""
    model, costs = onnx.load(path), load_profile().protocol(protocol)
    predicted = predict_session([secure_work(model, n, protocol=protocol) for n in batches], protocol, costs)
    session = SimulatedSession(split_model(path), Settings(protocol), timeout=300)
    rng = np.random.default_rng(0)
    steps = [session.query([rng.standard_normal((n, *shape)).astype(np.float32)])[1] for n in batches]
    opened = [predicted[0].setup_bytes - costs.setup_bytes] + [0] * (len(batches) - 1)
    return list(zip(predicted, steps, opened, strict=True))


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_bytes_and_messages_are_exact(protocol: str, lenet: Path) -> None:
    """The first query of SEMI2K opens the weights as well, in the messages that open their other factors."""
    for predicted, step, opened in _session(lenet, protocol, [1, 1, 3], (1, 28, 28)):
        assert predicted.bytes is not None
        assert step.counters.bytes == predicted.bytes + opened
        assert step.counters.messages == predicted.messages_total
        assert step.comparisons == predicted.comparisons


def test_cheetah_is_predicted_within_3_percent(lenet: Path) -> None:
    """After the set-up; messages exactly, the batches of triples where they are made."""
    for predicted, step, _ in _session(lenet, "cheetah", [1, 1, 1], (1, 28, 28)):
        assert predicted.bytes == pytest.approx(step.counters.bytes, rel=0.03)
        assert step.counters.messages == predicted.messages_total


@pytest.mark.parametrize(("size", "queries"), [(32_768, 8), (131_072, 3)])
def test_cheetah_makes_transfers_where_they_are_predicted(size: int, queries: int, tmp_path: Path) -> None:
    """Two threads compare half of the elements each and have a reserve each, which one of the queries exhausts.

    A piece of the larger calls takes four messages where one of the smaller takes one.
    """
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    shape = {"x": ("float32", ["batch", size])}, {"y": ("float32", ["batch", size])}
    path = save(tmp_path / "m.onnx", [node], *shape)
    later = _session(path, "cheetah", [1] * queries, (size,))[1:]
    for predicted, step, _ in later:
        assert predicted.bytes == pytest.approx(step.counters.bytes, rel=1e-4)
        assert step.counters.messages == predicted.messages_total
    messages = [step.counters.messages for _, step, _ in later]
    assert max(messages) - min(messages) == 2 * 1281


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_are_calls_of_their_own(protocol: str, groups: int, tmp_path: Path) -> None:
    """Of strided convolutions, which SEMI2K unfolds, too, where windows do not overlap."""
    weight = np.random.default_rng(0).standard_normal((4, 4 // groups, 2, 2)).astype(np.float32)
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "group": groups}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    shape = {"x": ("float32", ["batch", 4, 6, 6])}, {"y": ("float32", ["batch", 4, 3, 3])}
    path = save(tmp_path / "m.onnx", [node], *shape, {"w": weight})
    for predicted, step, opened in _session(path, protocol, [2, 2], (4, 6, 6)):
        assert step.counters.bytes == (predicted.bytes or 0) + opened
        assert step.counters.messages == predicted.messages_total


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_stacks_of_matrices_are_multiplied_one_by_one(protocol: str, tmp_path: Path) -> None:
    """As in attention: both factors depend on the input, for every sample and head."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["s"], name="scores"),
        helper.make_node("MatMul", ["s", "w"], ["y"], name="out"),
    ]
    shape = {"x": ("float32", ["batch", 2, 3, 5])}, {"y": ("float32", ["batch", 2, 3, 4])}
    path = save(tmp_path / "m.onnx", nodes, *shape, {"w": np.ones((3, 4), np.float32)})
    for predicted, step, opened in _session(path, protocol, [1, 3], (2, 3, 5)):
        assert step.counters.bytes == (predicted.bytes or 0) + opened
        assert step.counters.messages == predicted.messages_total


@pytest.mark.parametrize("operator", ["HardSigmoid", "HardSwish"])
@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_hard_activations_compare_twice(protocol: str, operator: str, tmp_path: Path) -> None:
    attributes = {"alpha": 1 / 6, "beta": 0.5} if operator == "HardSigmoid" else {}
    node = helper.make_node(operator, ["x"], ["y"], name="n", **attributes)
    shape = {"x": ("float32", ["batch", 40])}, {"y": ("float32", ["batch", 40])}
    for predicted, step, _ in _session(save(tmp_path / "m.onnx", [node], *shape), protocol, [1, 3], (40,)):
        assert step.counters.bytes == predicted.bytes
        assert step.counters.messages == predicted.messages_total
        assert step.comparisons == predicted.comparisons
    assert predicted.comparisons == 3 * 40 * 2
