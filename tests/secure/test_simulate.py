"""Simulated parties: equal to the clear within fixed point, comparisons and bytes as the engine counts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from autorep_fx.errors import ConfigError, DataError, ProtocolError, SecureProgramError
from autorep_fx.runtime.secure.executables import Compiler, count_comparisons
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.protocols import PROTOCOLS, Settings
from autorep_fx.runtime.secure.results import comparisons_of
from autorep_fx.runtime.secure.run import run_model
from autorep_fx.runtime.secure.simulate import SimulatedSession
from autorep_fx.runtime.secure.split import split_model
from onnx_models import save

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_comparison_bytes_are_those_of_the_budget(
    protocol: str, granularity: str, compiled: Callable[..., Path]
) -> None:
    path = compiled(granularity)
    x = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
    settings = Settings(protocol)
    session = SimulatedSession(split_model(path), settings, timeout=60)
    _, step = session.query([x])
    nominal = 2 * sum(session.program.public.comparisons.values())
    assert step.comparisons == nominal
    per_comparison = {"semi2k": 2 * 56, "aby3": 3 * 36}[protocol]
    assert step.counters.kernels["msb_a2b"].bytes == nominal * per_comparison
    assert step.counters.bytes == sum(c.bytes for c in step.counters.operations.values())
    assert step.counters.messages == sum(c.messages for c in step.counters.operations.values())


def test_an_all_relu_model_pays_for_every_element(compiled: Callable[..., Path]) -> None:
    shapes = {}
    for kept in (1.0, 0.4):
        path = compiled("element", kept)
        session = SimulatedSession(split_model(path), Settings("semi2k"), timeout=60)
        _, step = session.query([np.zeros((1, 1, 6, 6), np.float32)])
        shapes[kept] = step.counters.kernels["msb_a2b"].bytes / 112
    assert shapes[1.0] == 4 * 36 + 4 * 4 + 8 * 4 * 9  # two ReLU sites, and a 3×3 max pool with nine windows a channel
    assert shapes[0.4] < shapes[1.0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_outputs_equal_the_clear_ones(protocol: str, model: Path, x: np.ndarray) -> None:
    run = run_model(model, [x], Settings(protocol), mode="simulate", timeout=120)
    assert run.max_error is not None and run.max_error < 1e-3
    value = run.to_json()
    assert {"comparisons", "predicted_bytes", "measured_bytes", "messages", "seconds", "max_error"} <= value.keys()
    if protocol in ("semi2k", "aby3"):
        assert value["predicted_bytes"] == value["measured_bytes"]
    else:
        assert value["predicted_bytes"] == pytest.approx(value["measured_bytes"], rel=0.03)
    assert value["comparisons"] == 2 * sum(split_model(model).program.comparisons.values())
    assert value["measured_bytes"] > 0 and value["messages"] > 0
    assert value["threat_model"]["parties"] == list(PROTOCOLS[protocol].roles)
    assert ("online, given a dealer" in str(value["notes"])) == (protocol == "semi2k")


def test_weights_are_opened_once_a_session(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32) / 16
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    shape = {"x": ("float32", ["batch", 512])}, {"y": ("float32", ["batch", 512])}
    session = SimulatedSession(
        split_model(save(tmp_path / "m.onnx", [node], *shape, {"w": weight})), Settings("semi2k"), timeout=60
    )
    x = np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)
    steps = []
    for _ in range(3):
        [y], step = session.query([x])
        assert np.abs(y - x @ weight).max() < 2e-3
        steps.append(step)
    assert [step.counters.bytes // 2 for step in steps] == [2_146_304, 49_152, 49_152]
    assert steps[0].compile_seconds > 0 and steps[1].compile_seconds == 0


@pytest.mark.parametrize(
    ("attributes", "channels", "sizes"),
    [
        ({"pads": [1, 1, 1, 1]}, (3, 4), (6, 5)),
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (3, 4), (7, 6)),
        ({"pads": [0, 2, 1, 0], "dilations": [2, 1], "group": 2}, (4, 6), (8, 7)),
        ({"pads": [1, 1, 1, 1], "group": 4}, (4, 4), (5, 5)),
    ],
)
def test_convolutions_are_multiplied_first(
    attributes: dict[str, object], channels: tuple[int, int], sizes: tuple[int, int], tmp_path: Path
) -> None:
    """Of any padding, stride, dilation and groups: equal to onnxruntime, with the bytes that are predicted."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((channels[1], channels[0] // int(str(attributes.get("group", 1))), 3, 3))
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", kernel_shape=[3, 3], **attributes)
    tensors = {"w": weight.astype(np.float32), "b": rng.standard_normal(channels[1]).astype(np.float32)}
    inputs, outputs = (
        {"x": ("float32", ["batch", channels[0], *sizes])},
        {"y": ("float32", ["batch", channels[1], "h", "w"])},
    )
    path = save(tmp_path / "m.onnx", [node], inputs, outputs, tensors)
    x = rng.standard_normal((2, channels[0], *sizes)).astype(np.float32)
    run = run_model(path, [x], Settings("semi2k"), timeout=60)
    assert run.max_error is not None and run.max_error < 2e-4
    assert run.predicted_bytes == run.to_json()["measured_bytes"]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_compiled_program_has_no_loop(batch: int, model: Path) -> None:
    settings = Settings("semi2k")
    program = JaxProgram(split_model(model).program, settings)
    executable = Compiler(program, settings).query([(batch, 1, 6, 6)])
    text = executable.program.code.decode()
    assert "while" not in text and "scatter" not in text
    assert text.count("pphlo.less") >= 2
    assert executable.comparisons == batch * sum(program.public.comparisons.values())


def test_a_compiled_loop_is_refused(model: Path) -> None:
    import jax

    compiler = Compiler(JaxProgram(split_model(model).program), Settings("semi2k"))

    def scatter(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda i, v: v * v, x)

    with pytest.raises(SecureProgramError, match="has a loop"):
        compiler._compile(scatter, [jax.ShapeDtypeStruct((4,), np.float32)], ["x"], lambda i: "y")


def test_counting_reads_shapes_of_what_is_secret() -> None:
    lines = [
        "%2 = pphlo.less %0, %1 : (tensor<4x5xf32>, tensor<4x5x!pphlo.secret<f32>>) -> tensor<4x5x!pphlo.secret<i1>>",
        "%2 = pphlo.less %0, %1 : (tensor<4x5xi32>, tensor<4x5xi32>) -> tensor<4x5xi1>",
        "%3 = pphlo.maximum %0, %1 : tensor<7x!pphlo.secret<f32>>",
        "%4 = pphlo.greater %0, %1 : (tensor<f32>, tensor<!pphlo.secret<f32>>) -> tensor<!pphlo.secret<i1>>",
        "%5 = pphlo.add %0, %1 : tensor<9x!pphlo.secret<f32>>",
    ]
    assert count_comparisons("\n".join(lines)) == 20 + 7 + 1


@pytest.mark.parametrize("protocol", ["semi2k", "aby3"])
def test_products_that_crash_the_engine_in_32_bits_are_refused(protocol: str, model: Path) -> None:
    """By size, of matrices and convolutions alike; the same products compile in 64 bits."""
    import jax

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    def convolution(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID")

    program = JaxProgram(split_model(model).program)
    for function, shapes, size in (
        (product, ((100, 64), (64, 16)), 102_400),
        (product, ((3, 100, 64), (3, 64, 16)), 307_200),
        (convolution, ((1, 6, 14, 14), (16, 6, 5, 5)), 240_000),
    ):
        arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes], ["x", "w"], lambda i: "y"
        assert Compiler(program, Settings(protocol, 64))._compile(function, *arguments).largest_product == size
        with pytest.raises(ProtocolError, match=f"crashes in a product.*\n.*{size:,} multiplications"):
            Compiler(program, Settings(protocol, 32))._compile(function, *arguments)


def test_small_products_run_in_32_bits(model: Path, x: np.ndarray) -> None:
    session = SimulatedSession(split_model(model), Settings("semi2k", 32), timeout=60)
    [output], _ = session.query([x])
    assert np.isfinite(output).all()


def test_a_count_that_the_engine_does_not_confirm_is_refused(model: Path, x: np.ndarray) -> None:
    settings = Settings("semi2k")
    session = SimulatedSession(split_model(model), settings, timeout=60)
    _, step = session.query([x])
    with pytest.raises(SecureProgramError, match="did not compare what the program says"):
        comparisons_of(step.counters, settings, step.comparisons + 1)


def test_plain_mode_and_batches(model: Path, x: np.ndarray) -> None:
    run = run_model(model, [x], Settings(), mode="plain", batch=1)
    assert len(run.queries) == 2 and run.outputs[0].shape == (2, 3)
    assert run.max_error is not None and run.max_error < 1e-5
    assert run.to_json()["measured_bytes"] is None


def test_settings_and_inputs_that_do_not_fit(model: Path, x: np.ndarray) -> None:
    with pytest.raises(ProtocolError, match=r"(?s)'aby'.*Did you mean 'aby3'.*a ring of 48 bits"):
        Settings("aby", ring_bits=48)
    with pytest.raises(ProtocolError, match="40 fraction bits"):
        Settings("aby3", fraction_bits=40)
    with pytest.raises(ConfigError, match="no such mode"):
        run_model(model, [x], Settings(), mode="sham")
    with pytest.raises(DataError, match="no common number of samples"):
        run_model(model, [x, x[:1]], Settings())
    with pytest.raises(DataError, match="has shape"):
        run_model(model, [x[:, :, :4]], Settings("semi2k"))
