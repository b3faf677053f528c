"""``python -m serve_onnxruntime model.onnx``."""

from __future__ import annotations

import signal
import sys

import uvicorn

from serve_onnxruntime.app import create_app
from serve_onnxruntime.settings import parse_settings


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are under way are finished."""
    settings = parse_settings()
    # uvicorn stops gracefully on SIGTERM and then raises it again: that is the end that was asked for, not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        create_app(settings), host=settings.host, port=settings.port, timeout_graceful_shutdown=settings.stop_seconds,
        server_header=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
