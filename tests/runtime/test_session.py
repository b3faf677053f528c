"""Sessions: where they run, many samples, tensors in place, threads."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from autorep_fx.errors import ConfigError, DataError, DeviceError, ModelFileError
from autorep_fx.runtime import Session
from autorep_fx.runtime.providers import Choice, check_got
from onnx_models import relu_net, save


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relu_net(tmp_path_factory.mktemp("session") / "m.onnx")


@pytest.fixture
def session(path: Path) -> Session:
    return Session(path, device="cpu", threads=1)


def _samples(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


# --- Devices -----------------------------------------------------------------------------------------------------


def test_explicit_providers(path: Path) -> None:
    """With options; what is not in this build is named with what is; a device beside them is refused."""
    found = Session(path, providers=[("CPUExecutionProvider", {})])
    assert (found.device, found.providers) == ("cpu", ("CPUExecutionProvider",))
    with pytest.raises(DeviceError, match=r"no provider 'CPUExecutionprovider'\. Did you mean 'CPUExecutionProvider'"):
        Session(path, providers=["CPUExecutionprovider"])
    with pytest.raises(DeviceError, match="no provider to run on"):
        Session(path, providers=[])
    with pytest.raises(ConfigError, match="both given"):
        Session(path, device="cpu", providers=["CPUExecutionProvider"])


def test_auto_says_what_it_chose_and_why(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the level info."""
    with caplog.at_level(logging.INFO):
        found = Session(path)
    assert f"m.onnx runs on {found.device}" in caplog.text
    if found.device == "cpu":
        assert "no NVIDIA driver" in caplog.text or "without CUDA" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("arguments", [{"device": "cuda"}, {"providers": ["CUDAExecutionProvider"]}])
def test_cuda_that_is_not_there_is_refused(path: Path, arguments: dict[str, Any]) -> None:
    """As a device and as a provider, where onnxruntime itself would go on on the CPU."""
    with pytest.raises(DeviceError, match=r"(does not run on CUDA|no provider 'CUDA)[\s\S]*To fix: "):
        Session(path, **arguments)


def test_a_provider_that_was_dropped_is_an_error() -> None:
    """The session's own list is what counts; an order that is not kept counts too."""
    cuda = Choice(("CUDAExecutionProvider", "CPUExecutionProvider"), ("CUDAExecutionProvider",))
    check_got(cuda, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"does not run on CUDA[\s\S]*providers CPUExecutionProvider[\s\S]*cuDNN"):
        check_got(cuda, ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="does not run on OpenVINO"):
        check_got(Choice((), ("OpenVINO", "CPUExecutionProvider")), ["CPUExecutionProvider"])


# --- Inputs ------------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_all_named(session: Session) -> None:
    """Too many, twice, of another shape and type."""
    with pytest.raises(DataError, match=r"2 inputs were given, the model takes 1") as error:
        session(_samples(2).astype(np.float64), _samples(2))
    assert "is float64, expected float32" in str(error.value)
    assert "Pass x: float32 (batch, 4)." in str(error.value)
    with pytest.raises(DataError, match="'x' is given twice"):
        session(_samples(2), x=_samples(2))


def test_an_input_that_is_no_array_is_refused(tmp_path: Path) -> None:
    """By its type in onnxruntime."""
    info = helper.make_tensor_sequence_value_info("x", 1, None)
    at = helper.make_tensor("at", 7, [], [0])
    node = helper.make_node("SequenceAt", ["x", "at"], ["y"])
    graph = helper.make_graph([node], "g", [info], [helper.make_tensor_value_info("y", 1, [3])], [at])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"NumPy does not have[\s\S]*seq\(tensor"):
        Session(tmp_path / "m.onnx", device="cpu")


def test_threads_and_spinning_are_checked(path: Path) -> None:
    """Every setting gives the same outputs; others are refused."""
    expected = Session(path, device="cpu")(_samples(2))
    for spinning in ("always", "running", "never"):
        found = Session(path, device="cpu", threads=2, spinning=spinning)(_samples(2))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="negative"):
        Session(path, device="cpu", threads=-1)
    with pytest.raises(ConfigError, match=r"'sometimes'[\s\S]*always, running, never"):
        Session(path, device="cpu", spinning="sometimes")  # type: ignore[arg-type]


# --- Many samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_many_samples_equal_single_ones(session: Session, batch_size: int) -> None:
    """Whatever the batch size; in order; as arrays, tuples and mappings; from an iterator; none at all."""
    data = _samples(10)
    expected = np.concatenate([session(row[None]) for row in data])
    for samples in (list(data), [(row,) for row in data], [{"x": row} for row in data], iter(data)):
        found = session.run_many(samples, batch_size=batch_size)
        assert [row.shape for row in found] == [(3,)] * 10
        np.testing.assert_allclose(np.stack(found), expected, rtol=1e-5, atol=1e-6)
    assert session.run_many([]) == []


def test_batches_are_as_large_as_asked(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven samples in batches of three: 3, 3 and 1."""
    sizes = []
    run = session._run

    def spy(feed: dict[str, Any]) -> list[Any]:
        sizes.append(len(feed["x"]))
        return run(feed)

    monkeypatch.setattr(session, "_run", spy)
    session.run_many(list(_samples(7)), batch_size=3)
    assert sizes == [3, 3, 1]


def test_samples_of_several_sizes_are_batched_by_size(tmp_path: Path) -> None:
    """A model with a free height: each batch has one, and the results keep the order."""
    size = {"least": 1, "most": None, "step": 1, "example": 2}
    path = save(
        tmp_path / "m.onnx", [helper.make_node("ReduceMax", ["x"], ["y"])], {"x": ("float32", ["batch", "height"])},
        {"y": ("float32", [1, 1])},
    )  # fmt: skip
    with pytest.raises(DataError, match="one row per sample"):
        Session(path, device="cpu").run_many([np.zeros(2, np.float32)] * 2)
    path = save(
        tmp_path / "n.onnx", [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        {"x": ("float32", ["batch", "height"])},
        {"y": ("float32", ["batch", "height"]), "z": ("float32", ["batch", "height"])},
        metadata={"autorep_fx.sizes": json.dumps({"height": size})},
    )  # fmt: skip
    samples = [np.full(n, i, np.float32) for i, n in enumerate([2, 5, 2, 3, 5])]
    found = Session(path, device="cpu").run_many(samples)
    for (y, z), sample in zip(found, samples, strict=True):
        np.testing.assert_array_equal(y, sample)
        np.testing.assert_array_equal(z, -sample)


def test_samples_that_do_not_fit_are_refused_by_index(session: Session, tmp_path: Path) -> None:
    """Before anything is run; a batch of none; an input without a batch."""
    with pytest.raises(DataError, match=r"Sample 1, as a batch of one:[\s\S]*shape \(1, 5\), expected \(batch, 4\)"):
        session.run_many([np.zeros(4, np.float32), np.zeros(5, np.float32)])
    with pytest.raises(DataError, match=r"Sample 0[\s\S]*is float64"):
        session.run_many([np.zeros(4)])
    with pytest.raises(DataError, match="one sample or more"):
        session.run_many([np.zeros(4, np.float32)], batch_size=0)
    path = save(
        tmp_path / "m.onnx", [helper.make_node("Add", ["x", "b"], ["y"])],
        {"x": ("float32", ["batch", 4]), "b": ("float32", [4])}, {"y": ("float32", ["batch", 4])},
    )  # fmt: skip
    with pytest.raises(DataError, match="not one batch"):
        Session(path, device="cpu").run_many([(np.zeros(4, np.float32), np.zeros(4, np.float32))])


def test_a_fixed_batch_takes_its_multiples(tmp_path: Path) -> None:
    """Whatever batch size is asked for; what is left over is refused."""
    session = Session(relu_net(tmp_path / "m.onnx", batch=2), device="cpu")
    data = _samples(4)
    np.testing.assert_array_equal(
        np.stack(session.run_many(list(data))), np.concatenate([session(data[:2]), session(data[2:])])
    )
    with pytest.raises(DataError, match=r"exactly 2 samples[\s\S]*1 samples that are left over"):
        session.run_many(list(data[:3]))


def test_warm_up_runs_the_batches(session: Session) -> None:
    """And says how long the last one took."""
    assert 0 < session.warm_up(1, 8, runs=2) < 60
    assert session.warm_up() > 0


# --- Tensors in place --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 0])
def test_tensors_are_run_where_they_lie(session: Session, batch: int) -> None:
    """Equal to NumPy; the outputs outlive the session's next runs; sliced tensors too."""
    data = torch.from_numpy(_samples(10))
    [found] = session.run_torch(data[:batch])
    expected = session(data[:batch].numpy())
    session.run_torch(x=data * 2)
    np.testing.assert_array_equal(found.numpy(), expected)
    [strided] = session.run_torch(data[::2])
    np.testing.assert_array_equal(strided.numpy(), session(data[::2].numpy()))


def test_inputs_and_outputs_are_not_copied(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that is read is the tensor's, and the output's is that which was written to."""
    data, seen = torch.from_numpy(_samples(4)), []
    make = session._session.io_binding

    def spy() -> Any:
        binding = make()
        bind = binding.bind_input
        monkeypatch.setattr(binding, "bind_input", lambda *args: (seen.append(args[-1]), bind(*args))[1])
        seen.append(binding)
        return binding

    monkeypatch.setattr(session._session, "io_binding", spy)
    [found] = session.run_torch(data)
    binding, address = seen
    assert address == data.data_ptr()
    assert found.data_ptr() == binding.get_outputs()[0].data_ptr()


def test_tensors_that_cannot_be_bound_are_refused(session: Session) -> None:
    """On another device, with gradients, of another type, and what is no tensor."""
    with pytest.raises(DeviceError, match=r"a tensor on meta, a session on cpu[\s\S]*tensor\.to\('cpu'\)"):
        session.run_torch(torch.zeros(2, 4, device="meta"))
    with pytest.raises(DataError, match="no gradients"):
        session.run_torch(torch.zeros(2, 4, requires_grad=True))
    with pytest.raises(DataError, match="is float16, expected float32"):
        session.run_torch(torch.zeros(2, 4, dtype=torch.float16))
    with pytest.raises(DataError, match=r"takes torch tensors[\s\S]*ndarray"):
        session.run_torch(_samples(2))  # type: ignore[arg-type]
    session.device = "cuda"  # as if: the tensor on the CPU would need a copy
    with pytest.raises(DeviceError, match="a tensor on cpu, a session on cuda:0"):
        session.run_torch(torch.zeros(2, 4))
    session.device = "OpenVINOExecutionProvider"
    with pytest.raises(DeviceError, match="Only tensors on the CPU and on CUDA"):
        session.run_torch(torch.zeros(2, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA")
def test_tensors_on_cuda(path: Path) -> None:
    """Bound on the GPU, equal to the CPU's outputs."""
    session, data = Session(path, device="cuda"), torch.from_numpy(_samples(6))
    [found] = session.run_torch(data.cuda())
    assert found.is_cuda
    np.testing.assert_allclose(found.cpu().numpy(), Session(path, device="cpu")(data.numpy()), rtol=1e-4, atol=1e-5)


# --- Threads -----------------------------------------------------------------------------------------------------


def test_a_session_is_shared_by_threads(session: Session) -> None:
    """Eight threads with data of their own, arrays, tensors and lists at once, 400 runs: each gets its own outputs."""
    data = [_samples(size, seed=size) for size in range(1, 9)]
    expected = [session(x) for x in data]
    start = threading.Barrier(8)

    def work(index: int) -> float:
        start.wait()
        worst = 0.0
        for turn in range(50):
            if turn % 3 == 0:
                found = np.stack(session.run_many(list(data[index]), batch_size=2))
            elif turn % 3 == 1:
                found = session.run_torch(torch.from_numpy(data[index]))[0].numpy()
            else:
                found = session(data[index])
            worst = max(worst, float(np.abs(found - expected[index]).max()))
        return worst

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) < 1e-5


def test_a_profile_is_written(path: Path, tmp_path: Path) -> None:
    """Where it was asked for."""
    session = Session(path, device="cpu", profile=tmp_path / "run")
    session.warm_up()
    written = session.end_profile()
    assert written.parent == tmp_path
    assert any(event.get("args", {}).get("op_name") == "Relu" for event in json.loads(written.read_text()))
