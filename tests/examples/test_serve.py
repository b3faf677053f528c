"""The example service over real HTTP: a process of its own, and several clients at once."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from autorep_fx.runtime import Session
from onnx_models import relu_net, save

pytest.importorskip("fastapi", reason="the service needs fastapi, of the extra 'test'")
pytest.importorskip("uvicorn", reason="the service needs uvicorn, of the extra 'test'")
httpx = pytest.importorskip("httpx", reason="the clients need httpx, of the extra 'test'")

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def stop(self) -> None:
        """Ask it to stop, and require that it does, with code 0."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log.read_text()

    def client(self) -> Any:
        return httpx.Client(base_url=self.address, timeout=30, trust_env=False)

    def metric(self, name: str) -> float:
        with self.client() as client:
            found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return 0.0 if found is None else float(found[1])


_STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    for process in _STARTED:
        process.kill()
        process.wait()


def _start(model: Path, *arguments: str) -> Service:
    """Start the service on a free port; an AssertionError has its log, if it does not come up."""
    paths = [str(ROOT), str(ROOT / "examples"), *filter(None, [os.environ.get("PYTHONPATH")])]
    log = model.parent / f"log{len(list(model.parent.iterdir()))}.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_onnxruntime", str(model), "--port", "0", "--threads", "1", *arguments],
            stderr=file, cwd=model.parent, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
    _STARTED.append(process)
    while process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return Service(process, found[0], log)
        time.sleep(0.02)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relu_net(tmp_path_factory.mktemp("serve") / "m.onnx")


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    """With small limits."""
    found = _start(model, "--max-batch", "8", "--max-body", "4000", "--read-seconds", "1")
    yield found
    found.stop()


def _samples(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


_NPY = {"content-type": "application/x-npy"}


def test_it_answers_what_the_model_does(service: Service, model: Path) -> None:
    """In JSON and in NumPy's format; and it says what the model takes, and that it is well."""
    x, session = _samples(3), Session(model, device="cpu")
    with service.client() as client:
        assert client.get("/healthz").text == "ok"
        assert client.get("/readyz").text == "ready"
        assert client.get("/model").json() == {
            "inputs": {"x": {"shape": ["batch", 4], "type": "float32"}}, "outputs": ["y"], "device": "cpu"
        }  # fmt: skip
        answer = client.post("/predict", json={"inputs": {"x": x.tolist()}})
        np.testing.assert_allclose(answer.json()["outputs"]["y"], session(x), rtol=1e-5, atol=1e-6)
        answer = client.post("/predict", content=_npy(x), headers=_NPY)
        assert answer.headers["content-type"] == "application/x-npy"
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), session(x), rtol=1e-5, atol=1e-6)
        answer = client.post("/predict", content=_npy(np.asfortranarray(x)), headers=_NPY)
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), session(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "body: Invalid JSON"),
        (b'{"inputs": {"x": [[1, 2, 3, 4]]}, "more": 1}', "more: Extra inputs"),
        (b'{"inputs": {"x": 1}}', "inputs.x: Input should be a valid array"),
        (b'{"inputs": {"x": [[1, 2, 3, 4], [1, 2]]}}', "inputs.x is ragged"),
        (b'{"inputs": {"x": [["a", "b", "c", "d"]]}}', "something else than numbers"),
        (b'{"inputs": {"x": [[1e60, 2, 3, 4]]}}', "too large for float32"),
        (b'{"inputs": {"x": [[1, 2, 3]]}}', "shape (1, 3), expected (batch, 4)"),
        (b'{"inputs": {"y": [[1, 2, 3, 4]]}}', "there is no input 'y'"),
        (b'{"inputs": {"x": []}}', "shape (0,), expected (batch, 4)"),
        (b'{"inputs": {"x": ' + str(np.zeros((9, 4)).tolist()).encode() + b"}}", "1 to 8 samples; this one has 9"),
        (b'{"inputs": {"x": ' + b"[" * 1500 + b"]" * 1500 + b"}}", "recursion limit"),
    ],
)
def test_json_that_does_not_fit_is_refused(service: Service, body: bytes, reason: str) -> None:
    """With 422 and what is wrong."""
    with service.client() as client:
        answer = client.post("/predict", content=body)
    assert answer.status_code == 422, answer.text
    assert reason in answer.json()["detail"]


def test_arrays_that_do_not_fit_are_refused(service: Service) -> None:
    """What is no array, one that claims to be larger than it is, one of objects, one of another type."""
    broken = _npy(_samples(1)).replace(b"(1, 4)", b"(1, 4[", 1)
    header = (
        np.lib.format.magic(1, 0) + b"v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 4), }"
    )
    header = header.ljust(127) + b"\n"
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for body, reason in (
        (b"nonsense", "not in NumPy's file format"), (broken, "NumPy's file format"),
        (_npy(_samples(1))[:20], "NumPy's file format"),
        (header, "not as long as it says"), (objects.getvalue(), "holds objects"),
        (_npy(np.zeros((1, 4))), "is float64, expected float32"),
    ):  # fmt: skip
        with service.client() as client:
            answer = client.post("/predict", content=body, headers=_NPY)
        assert answer.status_code == 422, answer.text
        assert reason in answer.json()["detail"]


def test_large_and_slow_bodies_are_cut_off(service: Service) -> None:
    """By the length that is stated, in chunks without one, and by time; other methods and paths are refused."""

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    with service.client() as client:
        assert client.post("/predict", content=b" " * 4001).status_code == 413
        # The connection may be closed while the client is still sending.
        with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
            assert client.post("/predict", content=chunks()).status_code == 413
        assert client.get("/predict").status_code == 405
        assert client.get("/elsewhere").status_code == 404
    host, port = service.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(4096)
    assert service.metric('autorep_requests_total{path="/predict",status="413"}') >= 1
    assert service.metric('autorep_requests_total{path="other",status="404"}') == 1


def test_clients_at_once_get_their_own_answers(service: Service, model: Path) -> None:
    """Sixteen clients, 20 requests each, of one to three samples; the metrics count every one of them."""
    session, name = Session(model, device="cpu"), 'autorep_requests_total{path="/predict",status="200"}'
    before, samples_before = service.metric(name), service.metric("autorep_batch_samples_sum")

    def work(seed: int) -> tuple[float, int]:
        worst, samples = 0.0, 0
        with service.client() as client:
            for turn in range(20):
                x = _samples(1 + (seed + turn) % 3, seed=100 * seed + turn)
                answer = client.post("/predict", content=_npy(x), headers=_NPY)
                assert answer.status_code == 200, answer.text
                worst = max(worst, float(np.abs(np.load(io.BytesIO(answer.content)) - session(x)).max()))
                samples += len(x)
        return worst, samples

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(work, range(16)))
    assert max(worst for worst, _ in found) < 1e-5
    assert service.metric(name) == before + 320
    assert service.metric("autorep_batch_samples_sum") == samples_before + sum(samples for _, samples in found)
    assert service.metric("autorep_requests_in_progress") == 1  # the one that asks


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About a second for a request of 64 samples: one weight, used many times."""
    nodes = [
        helper.make_node("MatMul", [f"x{i}" if i else "x", "w"], [f"x{i + 1}" if i < 299 else "y"]) for i in range(300)
    ]
    weight = np.linalg.qr(np.random.default_rng(0).standard_normal((1024, 1024)))[0].astype(np.float32)
    return save(
        tmp_path_factory.mktemp("slow") / "m.onnx", nodes, {"x": ("float32", ["batch", 1024])},
        {"y": ("float32", ["batch", 1024])}, {"w": weight},
    )  # fmt: skip


def _wait_until(service: Service, requests: int) -> None:
    """Until so many requests are under way, beside the one that asks."""
    end = time.monotonic() + 20
    while service.metric("autorep_requests_in_progress") < requests + 1:
        assert time.monotonic() < end, service.log.read_text()
        time.sleep(0.01)


def test_what_waits_is_batched_and_what_is_under_way_is_finished(slow_model: Path) -> None:
    """Requests that came while the model ran share its next run; a SIGTERM lets all of them finish, then it is 0."""
    service = _start(slow_model, "--max-batch", "256", "--max-waiting", "4")
    body = _npy(np.ones((64, 1024), np.float32))

    def ask(_: int) -> int:
        with service.client() as client:
            return int(client.post("/predict", content=body, headers=_NPY).status_code)

    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(ask, 0)
        _wait_until(service, 1)
        statuses = [first.result(), *pool.map(ask, range(11))]
        # Four may wait; the others are told to come again.
        assert set(statuses) == {200, 503}
        assert statuses[0] == 200
        assert service.metric("autorep_batch_samples_sum") == 64 * statuses.count(200)
        assert service.metric("autorep_batch_samples_count") < statuses.count(200)
        under_way = [pool.submit(ask, i) for i in range(3)]
        _wait_until(service, 1)
        service.process.send_signal(signal.SIGTERM)
        # Those that were taken are answered; one that came too late was not taken.
        answers = [future.exception() or future.result() for future in under_way]
        assert 200 in answers
        assert all(answer == 200 or isinstance(answer, httpx.TransportError) for answer in answers), answers
    assert service.process.wait(30) == 0, service.log.read_text()
    with pytest.raises(httpx.ConnectError):
        ask(0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--sha256", "0" * 64], "not the file that was expected"), (["--device", "cuda"], "does not run on CUDA")],
)
def test_a_model_that_is_not_right_stops_the_start(model: Path, arguments: list[str], reason: str) -> None:
    """Another digest than expected, a device that is not there: no port is opened."""
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(AssertionError, match=reason):
        _start(model, *arguments)
