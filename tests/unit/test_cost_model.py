"""The cost model against what the engine was measured to send, and what it says of what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import autorep_fx
from autorep_fx.cli import app
from autorep_fx.cost.network import Network
from autorep_fx.cost.predict import Prediction, predict
from autorep_fx.cost.primitives import secure_work
from autorep_fx.cost.profile import load_profile
from autorep_fx.cost.squares import opens_once
from autorep_fx.cost.writes import Cut, most_at_random, permutes
from autorep_fx.errors import ConfigError
from autorep_fx.models_zoo import create


def _graph(nodes: list[onnx.NodeProto], shape: list[int], weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A model from ``x`` ``(batch, *shape)`` to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    numbers = [numpy_helper.from_array(np.zeros(size, np.float32), name) for name, size in weights.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], numbers))


def _predict(model: onnx.ModelProto, protocol: str, batch: int | None = None, *, stock: bool = False) -> Prediction:
    """With the engine's own convolutions, if ``stock``."""
    return predict(
        secure_work(model, batch, protocol="" if stock else protocol), protocol, load_profile().protocol(protocol)
    )


N = 16_384
RELU = helper.make_node("Relu", ["x"], ["y"], name="n")
SQUARE = helper.make_node("Mul", ["x", "x"], ["y"], name="n")
POOL2 = helper.make_node("MaxPool", ["x"], ["y"], name="n", kernel_shape=[2, 2], strides=[2, 2])
POOL3 = helper.make_node("MaxPool", ["x"], ["y"], name="n", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
MEAN2 = helper.make_node("AveragePool", ["x"], ["y"], name="n", kernel_shape=[2, 2], strides=[2, 2])


# Bytes per element and messages as COSTS.md has them, measured with spu 0.9.5 on 16,384 elements or outputs.
@pytest.mark.parametrize(
    ("node", "shape", "protocol", "per_output", "messages"),
    [
        (RELU, [N], "semi2k", 144, 8), (RELU, [N], "aby3", 172, 11), (SQUARE, [N], "aby3", 52, 3),
        (SQUARE, [N], "semi2k", 24 + 16 / N, 2),  # 40 as a product: the factor is opened once, and one more number
        (POOL2, [1, 256, 256], "semi2k", 432, 16), (POOL3, [1, 256, 256], "semi2k", 1152, 32),
        (POOL2, [1, 256, 256], "aby3", 516, 22), (MEAN2, [1, 256, 256], "semi2k", 8, 1),
    ],
)  # fmt: skip
def test_operations_cost_what_was_measured(
    node: onnx.NodeProto, shape: list[int], protocol: str, per_output: float, messages: int
) -> None:
    """Over all parties."""
    found = _predict(_graph([node], shape, {}), protocol)
    assert (found.bytes, found.messages) == (round(per_output * N), messages)


@pytest.mark.parametrize(("node", "per_output", "messages"), [(RELU, (98.5, 102.6), 20), (SQUARE, (221.2, 221.4), 3)])
def test_cheetah_costs_what_was_measured(node: onnx.NodeProto, per_output: tuple[float, float], messages: int) -> None:
    """Of 16,384 elements; a comparison's share of the next transfers that it makes necessary lies in between."""
    found = _predict(_graph([node], [N], {}), "cheetah")
    assert found.bytes is not None
    assert per_output[0] <= found.bytes / N <= per_output[1]
    assert found.messages == messages


def test_squares_open_once_where_the_profile_says_that_it_is_cheaper() -> None:
    """The rule that the runtime follows is the profile's: a square of its own, and cheaper than a product."""
    for name, protocol in load_profile().protocols.items():
        square, product = protocol.operations.get("square"), protocol.operations.get("product")
        cheaper = square is not None and product is not None and square.bytes < product.bytes
        assert opens_once(name) == cheaper, name
        assert square is None or (square.status == "measured" and square.messages == 1)
    product_of_two = helper.make_node("Mul", ["x", "c"], ["y"], name="n")
    found = _predict(_graph([product_of_two], [N], {"c": (N,)}), "semi2k")
    assert (found.bytes, found.messages) == (40 * N, 2)


def test_a_convolution_opens_every_pixel_once() -> None:
    """64 → 64 channels, 3×3, at 32×32: 1,081,344 bytes a party under SEMI2K instead of 5,275,648 for every window.

    Under ABY3 its result alone counts.
    """
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n", pads=[1, 1, 1, 1])
    model = _graph([node], [64, 32, 32], {"w": (64, 64, 3, 3)})
    for stock, measured in ((True, 5_275_648), (False, 1_081_344)):
        found = _predict(model, "semi2k", stock=stock)
        assert found.bytes is not None
        assert found.bytes + found.setup_bytes == 2 * measured  # of a session with a single query
        assert found.setup_bytes == 16 * 64 * 64 * 9
    [work] = secure_work(model, protocol="semi2k")
    assert work.primitives is not None
    assert [(p.operation, p.result) for p in work.primitives] == [
        ("matmul", 64 * 32 * 32 * 9), ("truncation", 64 * 32 * 32)
    ]  # fmt: skip
    assert _predict(model, "aby3").bytes == 64 * 32 * 32 * (24 + 28)


@pytest.mark.parametrize(("scale", "products"), [(1.0, 0), (2.0, 1)])
def test_a_norm_of_scale_1_is_a_sum(scale: float, products: int) -> None:
    """A sum per channel is exported as a batch norm whose scale and variance are 1 and whose epsilon is 0."""
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "b", "v"], ["y"], name="n", epsilon=0.0)
    model = _graph([node], [3, 4, 4], {"s": (3,), "b": (3,), "v": (3,)})
    for name, value in (("s", scale), ("v", 1.0)):
        [tensor] = [t for t in model.graph.initializer if t.name == name]
        tensor.CopyFrom(numpy_helper.from_array(np.full(3, value, np.float32), name))
    assert _predict(model, "semi2k").bytes == products * 40 * 48


def test_groups_and_batches() -> None:
    """A depthwise kernel meets its own channel alone; the weight is opened once for all samples of a query."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n", pads=[1, 1, 1, 1], group=8)
    model = _graph([node], [8, 4, 4], {"w": (8, 1, 3, 3)})
    for batch in (1, 5):
        left, right, result = batch * 8 * 16, 8 * 9, batch * 8 * 16
        assert _predict(model, "semi2k", batch).bytes == 16 * left + 8 * result
        assert _predict(model, "semi2k", batch, stock=True).bytes == 16 * 9 * left + 8 * result
    assert _predict(model, "semi2k", 5).setup_bytes == 16 * right
    linear = _graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="n")], [12], {"w": (12, 7), "b": (7,)})
    assert _predict(linear, "semi2k", 3).bytes == 16 * 3 * 12 + 8 * 3 * 7
    assert _predict(linear, "semi2k", 3).setup_bytes == 16 * 12 * 7


def test_a_fixed_batch_and_free_sizes_cost_the_same(tmp_path: Path) -> None:
    """A query of a file of 4 samples is 4 of a free one; free heights and widths are the example's."""
    model, x = create("digits_resnet").eval(), torch.randn(4, 1, 16, 16)
    options = {"dynamic": {}, "fixed": {"dynamic_batch": False}, "sizes": {"dynamic_size": True}}
    models = {}
    for name, option in options.items():
        path, config = tmp_path / f"{name}.onnx", {"capture": option, "gates": {"granularity": "channel"}}
        autorep_fx.transform(model, "100%", example_inputs=x, config=config).export(path)
        models[name] = onnx.load(path)
    expected = _predict(models["dynamic"], "semi2k", 4)
    assert expected.bytes is not None
    for name, batch in (("fixed", None), ("fixed", 4), ("sizes", 4)):
        found = _predict(models[name], "semi2k", batch)
        assert (found.bytes, found.setup_bytes) == (expected.bytes, expected.setup_bytes), name
    with pytest.raises(ConfigError, match="takes 4 samples in a query and no other number"):
        secure_work(models["fixed"], 2)


def test_resnet18_costs_what_the_engine_sent(tmp_path: Path) -> None:
    """165.7 MB a party and 179 messages were measured with the stem's ReLU: 65,536 × 72 bytes and 8 of them."""
    torch.manual_seed(0)
    path = tmp_path / "m.onnx"
    autorep_fx.transform(create("resnet18").eval(), "100%", example_inputs=torch.randn(2, 3, 32, 32)).export(path)
    found = _predict(onnx.load(path), "semi2k", stock=True)
    assert found.comparisons == 491_520
    assert found.bytes is not None
    assert (found.bytes + found.setup_bytes) / 2 + 65_536 * 72 == pytest.approx(165.7e6, abs=0.05e6)
    assert found.messages == 179 - 8
    assert found.rounds == 171 - 6  # three projections beside the blocks' own convolutions, 2 messages each


def test_what_is_not_known_is_named_and_not_summed() -> None:
    """No total where an operator or an operation of a protocol has no cost; what is known is a lower bound."""
    nodes = [helper.make_node("Relu", ["x"], ["h"], name="a"), helper.make_node("Erf", ["h"], ["y"], name="b")]
    found = _predict(_graph(nodes, [10], {}), "semi2k")
    assert (found.bytes, found.messages, found.rounds, found.known_bytes) == (None, None, None, 1440)
    assert found.unknown == {"Erf": 1}
    assert found.link_seconds(Network.parse("lan")) is None
    paper = _predict(_graph([RELU], [10], {}), "cheetah-paper")
    assert paper.unknown == {"Relu (select)": 1}
    assert paper.known_bytes == 440
    assert not paper.verified


def test_messages_on_the_longest_path() -> None:
    """Two branches run one after the other in the engine; on the path only the longer counts."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"), helper.make_node("Mul", ["x", "x"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["y"], name="c"),
    ]  # fmt: skip
    found = _predict(_graph(nodes, [10], {}), "semi2k")
    assert (found.messages, found.rounds) == (10, 8)


def test_time_on_a_network() -> None:
    """Bytes of one party over the bandwidth, and a latency per message."""
    found = _predict(_graph([RELU], [N], {}), "semi2k")
    expected = 8 * N * 72 / 100e6 + 8 * 0.04
    assert found.link_seconds(Network.parse("wan")) == pytest.approx(expected)
    assert Network.parse("100Mbps, 40 ms").seconds(N * 72, 8) == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"no network.\nReceived: 'dsl'"):
        Network.parse("dsl")


def test_profiles_are_read_and_refused(tmp_path: Path) -> None:
    """A profile of one's own takes the place of the built-in; what is wrong in one is listed at once."""
    content = json.loads(load_profile().model_dump_json())
    content["protocols"]["semi2k"]["operations"]["compare"]["bytes"] = 1.0
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    assert load_profile(path).protocol("semi2k").operations["compare"].bytes == 1.0
    content["protocols"]["aby3"]["parties"] = "many"
    del content["protocols"]["semi2k"]["operations"]["compare"]["source"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert "aby3.parties" in str(caught.value)
    assert "semi2k.operations.compare.source" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"Did you mean 'aby3'"):
        load_profile().protocol("aby")


def test_every_constant_names_its_source() -> None:
    """Measured ones the engine; those of papers are unverified."""
    for name, protocol in load_profile().protocols.items():
        assert protocol.verified == (name in ("semi2k", "aby3", "cheetah"))
        for cost in protocol.operations.values():
            assert cost.source
            assert ("spu 0.9.5" in cost.source) == (cost.status == "measured")


def test_the_command_prints_totals_nodes_and_json(tmp_path: Path) -> None:
    """Every protocol by default; a single one with its nodes; JSON with the time on the link."""
    path = tmp_path / "m.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(_graph([RELU], [N], {})), path)
    printed = CliRunner().invoke(app, ["cost", str(path), "--protocol", "semi2k", "--nodes", "--network", "wan"])
    assert printed.exit_code == 0, printed.output
    assert "2.359" in printed.output  # MB
    assert "given a dealer" in printed.output
    found = json.loads(CliRunner().invoke(app, ["cost", str(path), "--json", "--batch", "2"]).output)
    rows = {row["protocol"]: row for row in found["protocols"]}
    assert set(rows) == set(load_profile().protocols)
    assert rows["semi2k"]["bytes"] == 2 * 144 * N
    assert rows["cheetah-paper"]["predicted_link_seconds"] is None
    semi2k = rows["semi2k"]
    assert semi2k["measured_compute_seconds"] > 0
    assert semi2k["predicted_seconds"] == semi2k["predicted_link_seconds"] + semi2k["measured_compute_seconds"]
    assert rows["delphi-gc"]["measured_compute_seconds"] is None
    assert rows["delphi-gc"]["predicted_seconds"] is None
    named = json.loads(CliRunner().invoke(app, ["cost", "predict", str(path), "--json", "--batch", "2"]).output)
    assert named == found
    assert rows["delphi-gc"]["verified"] is False


def test_the_table_marks_what_is_not_all_and_cuts_nothing_off(tmp_path: Path) -> None:
    """A count that leaves out an operator says so; names of protocols and columns are whole in a pipe."""
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Relu", ["x"], ["h"], name="a"), helper.make_node("Erf", ["h"], ["y"], name="b")]
    onnx.save(onnx.shape_inference.infer_shapes(_graph(nodes, [N], {})), path)
    printed = CliRunner().invoke(app, ["cost", str(path)]).output
    assert printed.count(f"> {N:,} ") == len(load_profile().protocols)
    found = json.loads(CliRunner().invoke(app, ["cost", str(path), "--json"]).output)
    assert not any(row["comparisons_complete"] for row in found["protocols"])
    onnx.save(onnx.shape_inference.infer_shapes(_graph([RELU], [N], {})), path)
    assert f"> {N:,} " not in CliRunner().invoke(app, ["cost", str(path)]).output
    for whole in ("cheetah-paper (unverified)", "MB, all parties", "s compute"):
        assert whole in printed


@pytest.mark.parametrize(
    ("size", "written"), [(65536, 343), (65536, 1700), (8192, 100), (784, 50), (7, 2), (20014, 1000), (10007, 3000)]
)
def test_a_write_is_cut_into_blocks_that_fill_alike(size: int, written: int) -> None:
    """Room for the axis and little more, whatever its factors; the fullest block holds about what draws say."""
    cut = Cut.of(size, written)
    room = cut.width * cut.blocks * cut.rows
    assert size <= room < size + cut.width * (cut.blocks + 1) and not permutes(size, written)
    rng = np.random.default_rng(0)
    drawn = [
        np.bincount(rng.choice(size, written, replace=False) // cut.width % cut.blocks).max() for _ in range(20)
    ]  # fmt: skip
    found = most_at_random(written, cut)
    assert found <= cut.rows * cut.width and abs(found / np.median(drawn) - 1) <= 0.25


def test_more_written_elements_make_more_blocks() -> None:
    """The 0/1 matrices stay small."""
    assert [Cut.of(65536, written).blocks for written in (1, 1000, 3000, 12000)] == [17, 17, 37, 127]


@pytest.mark.parametrize("channels, of_a_channel", [(64, 1024), (128, 256), (512, 16), (2048, 49), (256, 3136)])
def test_one_place_in_every_channel_is_not_one_block(channels: int, of_a_channel: int) -> None:
    """What training keeps lies in a few channels, or in the middle of all of them."""
    size = channels * of_a_channel
    for kept in (np.arange(0, size, of_a_channel), np.arange(min(size // 8, 2048))):
        cut = Cut.of(size, len(kept))
        fullest = np.bincount(kept // cut.width % cut.blocks).max()
        assert fullest <= 3 * -(-len(kept) // cut.blocks) + cut.width


def test_a_dense_write_is_one_gather() -> None:
    """Which takes every element of the axis once."""
    assert permutes(8192, 6000)
    assert not permutes(8192, 600)
