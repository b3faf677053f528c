"""Requests that wait while the model runs become its next batch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from autorep_fx.runtime import Session
from serve_onnxruntime.metrics import Metrics

__all__ = ["Batcher", "Overloaded"]

Arrays = dict[str, Any]


class Overloaded(Exception):  # noqa: N818  # a state of the service, not a defect
    """As many requests wait as may."""


@dataclass(eq=False)
class _Waiting:
    feed: Arrays
    samples: int
    result: asyncio.Future[list[Any]]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind can be in one batch."""
        return tuple(value.shape[1:] for value in self.feed.values())


class Batcher:
    """Runs the model in one thread, one batch after another; nobody waits for a batch to fill.

    Args:
        session: The model.
        max_batch: Most samples in a run.
        max_waiting: Most requests that wait.
        metrics: Where batches are counted.
    """

    def __init__(self, session: Session, *, max_batch: int, max_waiting: int, metrics: Metrics) -> None:
        self._session, self._max_batch, self._max_waiting, self._metrics = session, max_batch, max_waiting, metrics
        self._waiting: deque[_Waiting] = deque()
        self._more = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.create_task(self._serve())

    async def run(self, feed: Arrays) -> list[Any]:
        """Outputs for checked inputs of one or more samples.

        Raises:
            Overloaded: Too many requests wait.
        """
        if self._closing or len(self._waiting) >= self._max_waiting:
            raise Overloaded
        item = _Waiting(feed, len(next(iter(feed.values()))), asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._more.set()
        return await item.result

    async def close(self) -> None:
        """Finish what waits, and stop."""
        self._closing = True
        self._more.set()
        await self._task
        self._thread.shutdown()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            batch = self._next()
            if not batch:
                if self._closing:
                    return
                self._more.clear()
                continue
            try:
                outputs, seconds = await loop.run_in_executor(self._thread, self._run, batch)
            except Exception as error:  # each caller is told; the service goes on
                for item in batch:
                    if not item.result.done():
                        item.result.set_exception(error)
                continue
            self._metrics.batches.add(sum(item.samples for item in batch))
            self._metrics.model_seconds.add(seconds)
            start = 0
            for item in batch:
                if not item.result.done():  # a client that went away has cancelled it
                    item.result.set_result([output[start : start + item.samples] for output in outputs])
                start += item.samples

    def _next(self) -> list[_Waiting]:
        """The first that waits, and those behind it that fit into one batch with it, in order."""
        batch: list[_Waiting] = []
        while self._waiting:
            item = self._waiting[0]
            full = sum(other.samples for other in batch) + item.samples > self._max_batch
            if batch and (full or item.kind != batch[0].kind):
                break
            self._waiting.popleft()
            if not item.result.done():
                batch.append(item)
        return batch

    def _run(self, batch: list[_Waiting]) -> tuple[list[Any], float]:
        feed = {name: np.concatenate([item.feed[name] for item in batch]) for name in batch[0].feed}
        start = time.perf_counter()
        outputs = self._session.run(**feed)
        return outputs, time.perf_counter() - start
