"""Counters and histograms in the text format that Prometheus reads."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Metrics", "MetricsMiddleware"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)
# Other paths share one label: whoever asks for random ones must not fill the memory.
_PATHS = {"/predict", "/healthz", "/readyz", "/metrics", "/model"}


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        result, below = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            result.append(f'{name}_bucket{{{labels}le="{bound}"}} {below}')
        inner = f"{{{labels.rstrip(',')}}}" if labels else ""
        return [*result, f"{name}_sum{inner} {self.total}", f"{name}_count{inner} {below}"]


class Metrics:
    """What the service counts; used from the event loop alone."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, _Histogram] = defaultdict(lambda: _Histogram(_SECONDS))
        self.in_progress = 0
        self.batches = _Histogram(_SAMPLES)
        self.model_seconds = _Histogram(_SECONDS)

    def text(self) -> str:
        """All metrics, for ``GET /metrics``."""
        lines = ["# TYPE autorep_requests_total counter"]
        lines += [
            f'autorep_requests_total{{path="{path}",status="{status}"}} {number}'
            for (path, status), number in sorted(self.requests.items())
        ]
        lines += ["# TYPE autorep_requests_in_progress gauge", f"autorep_requests_in_progress {self.in_progress}"]
        lines.append("# TYPE autorep_request_seconds histogram")
        for path, histogram in sorted(self.seconds.items()):
            lines += histogram.lines("autorep_request_seconds", f'path="{path}",')
        lines.append("# TYPE autorep_batch_samples histogram")
        lines += self.batches.lines("autorep_batch_samples")
        lines.append("# TYPE autorep_model_seconds histogram")
        lines += self.model_seconds.lines("autorep_model_seconds")
        return "\n".join(lines) + "\n"


class MetricsMiddleware:
    """Counts requests by path and status, and measures them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in _PATHS else "other"
        status, start = 500, time.perf_counter()

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_progress += 1
        try:
            await self.app(scope, receive, count)
        finally:
            self.metrics.in_progress -= 1
            self.metrics.requests[path, status] += 1
            self.metrics.seconds[path].add(time.perf_counter() - start)
