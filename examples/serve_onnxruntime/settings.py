"""What the service is told when it starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Settings", "parse_settings"]


@dataclass(frozen=True)
class Settings:
    """Settings of the service.

    Attributes:
        model: The ONNX file.
        host: Address to listen on.
        port: Port; 0 for any that is free.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: Threads inside an operator; 0 is onnxruntime's choice.
        sha256: Expected digest of the file, or None.
        max_batch: Most samples in one run of the model, and in one request.
        max_body: Most bytes in the body of a request.
        max_waiting: Most requests that wait for the model; further ones are answered with 503.
        read_seconds: How long a client may take to send its request.
        stop_seconds: How long requests may still take after a SIGTERM.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    threads: int = 0
    sha256: str | None = None
    max_batch: int = 32
    max_body: int = 16 * 2**20
    max_waiting: int = 128
    read_seconds: float = 30.0
    stop_seconds: int = 30


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(prog="serve_onnxruntime", description="Serve a compiled model over HTTP.")
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--host", default=Settings.host)
    parser.add_argument("--port", type=int, default=Settings.port, help="0 for any that is free")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=Settings.device)
    parser.add_argument("--threads", type=int, default=Settings.threads, help="0: onnxruntime's choice")
    parser.add_argument("--sha256", help="expected digest of the file")
    parser.add_argument("--max-batch", type=int, default=Settings.max_batch, help="samples")
    parser.add_argument("--max-body", type=int, default=Settings.max_body, help="bytes")
    parser.add_argument("--max-waiting", type=int, default=Settings.max_waiting, help="requests")
    parser.add_argument("--read-seconds", type=float, default=Settings.read_seconds)
    parser.add_argument("--stop-seconds", type=int, default=Settings.stop_seconds)
    return Settings(**vars(parser.parse_args(arguments)))
