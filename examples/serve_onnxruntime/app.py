"""The service: ``POST /predict``, ``GET /model``, ``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from autorep_fx.errors import DataError, ModelFileError
from autorep_fx.runtime import Session
from serve_onnxruntime.batching import Batcher, Overloaded
from serve_onnxruntime.limits import read_body
from serve_onnxruntime.metrics import Metrics, MetricsMiddleware
from serve_onnxruntime.payload import NPY, PayloadError, Prediction, from_json, from_npy, to_npy
from serve_onnxruntime.settings import Settings

__all__ = ["create_app"]

logger = logging.getLogger("uvicorn.error")


def create_app(settings: Settings) -> FastAPI:
    """The application; the model is loaded when it starts, and a model that cannot be loaded stops it."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Idle threads that spin would take their cores from the event loop.
        session = Session(
            settings.model, settings.device, threads=settings.threads, spinning="running", sha256=settings.sha256
        )
        app.state.session, app.state.max_batch = session, _max_batch(session, settings.max_batch)
        app.state.batcher = batcher = Batcher(
            session, max_batch=app.state.max_batch, max_waiting=settings.max_waiting, metrics=metrics
        )
        logger.info("%s is ready on %s", settings.model.name, session.device)
        yield
        app.state.batcher = None
        await batcher.close()

    app = FastAPI(title="autorep-fx", lifespan=lifespan)
    app.add_middleware(MetricsMiddleware, metrics=metrics)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """The process is alive."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz(request: Request) -> str:
        """The model is loaded, and requests are taken."""
        if request.app.state.batcher is None:
            raise HTTPException(503, "stopping")
        return "ready"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> str:
        """Counters, for Prometheus."""
        return metrics.text()

    @app.get("/model")
    async def model(request: Request) -> dict[str, Any]:
        """Inputs, outputs and device."""
        session: Session = request.app.state.session
        inputs = {n: {"shape": shape, "type": str(session.types[n])} for n, shape in session.inputs.items()}
        return {"inputs": inputs, "outputs": session.outputs, "device": session.device}

    @app.post("/predict", response_model=Prediction)
    async def predict(request: Request) -> Response:
        """Outputs for a batch of samples."""
        return await _predict(request, settings)

    return app


async def _predict(request: Request, settings: Settings) -> Response:
    state = request.app.state
    body = await read_body(request, most=settings.max_body, seconds=settings.read_seconds)
    plain = request.headers.get("content-type", "").partition(";")[0].strip() == NPY
    try:
        feed = await run_in_threadpool(_parse, state.session, body, plain)
    except (PayloadError, DataError) as error:
        raise HTTPException(422, str(error)) from error
    samples = len(next(iter(feed.values())))
    if not 1 <= samples <= state.max_batch:
        raise HTTPException(422, f"A request has 1 to {state.max_batch} samples; this one has {samples}.")
    try:
        outputs = await state.batcher.run(feed)
    except Overloaded:
        raise HTTPException(503, "Too many requests wait.", {"Retry-After": "1"}) from None
    content = await run_in_threadpool(_answer, state.session, outputs, plain)
    return Response(content, media_type=NPY if plain and len(outputs) == 1 else "application/json")


def _max_batch(session: Session, asked: int) -> int:
    """Most samples in a run; a fixed batch is the only one. Runs the model once, which warms it up.

    Raises:
        ModelFileError: Inputs or outputs of the model are not a row per sample, so that requests cannot share a run.
    """
    axes = {shape[0] if shape else None for shape in session.inputs.values()}
    fixed = next((size for size in axes if isinstance(size, int)), None)
    samples = fixed or min(2, asked)
    outputs = session.run(**session.zeros(samples)) if len(axes) == 1 and None not in axes else []
    if not outputs or any(value.ndim == 0 or len(value) != samples for value in outputs):
        raise ModelFileError(
            "The model cannot be served in batches.", received=repr(session),
            fix="Export it with a batch as the first axis of every input and output.",
        )  # fmt: skip
    return fixed or asked


def _parse(session: Session, body: bytes, plain: bool) -> dict[str, Any]:
    """Inputs that the model takes, all of as many samples."""
    if plain and len(session.inputs) > 1:
        raise PayloadError("The model has several inputs: send JSON.")
    values = {next(iter(session.inputs)): from_npy(body)} if plain else from_json(body, session.types)
    feed = session.check(**values)
    if len({len(value) for value in feed.values()}) > 1:
        raise PayloadError("The inputs have different numbers of samples.")
    return feed


def _answer(session: Session, outputs: list[Any], plain: bool) -> bytes:
    if plain and len(outputs) == 1:
        return to_npy(outputs[0])
    lists = {}
    for name, value in zip(session.outputs, outputs, strict=True):
        finite = np.isfinite(value).all()
        lists[name] = (value if finite else np.where(np.isfinite(value), value, None)).tolist()
    return Prediction(outputs=lists).model_dump_json().encode()
