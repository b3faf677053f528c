"""Peak memory of a model, in a process of its own: ``python -m autorep_fx.runtime.peak_memory FILE``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from autorep_fx.errors import ModelFileError
from autorep_fx.runtime.session import Session

__all__ = ["PeakMemory", "peak_memory"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process that loads a model and runs it, in bytes; None where the system does not tell.

    On CUDA this is the host's memory alone.

    Attributes:
        before: With onnxruntime imported, before the file is read.
        loading: The peak while it is checked and loaded.
        running: The peak while it runs.
    """

    before: int | None
    loading: int | None
    running: int | None


def peak_memory(path: Path, *, batch: int, device: str = "cpu", threads: int = 0, runs: int = 3) -> PeakMemory:
    """Load and run a model in a new process, and return its peak memory.

    Args:
        path: The model.
        batch: Samples in a run.
        device: As of :class:`Session`.
        threads: As of :class:`Session`.
        runs: Runs.

    Raises:
        ModelFileError: The process failed.
    """
    root = str(Path(__file__).absolute().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    arguments = [str(path), "--batch", str(batch), "--device", device, "--threads", str(threads), "--runs", str(runs)]
    done = subprocess.run(
        [sys.executable, "-m", "autorep_fx.runtime.peak_memory", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    if done.returncode:
        raise ModelFileError(
            f"The memory of {path} cannot be measured: its process ended with code {done.returncode}.",
            received=(done.stderr.strip().splitlines() or ["no message; out of memory, perhaps"])[-1],
            fix="Measure a smaller batch, or pass --no-memory.",
        )
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def _measure(path: str, batch: int, device: str, threads: int, runs: int) -> PeakMemory:
    for package in ("onnx", "onnxruntime"):  # before the first measurement: neither belongs to the model
        importlib.import_module(package)

    before = _status("VmRSS")
    session = Session(path, device, threads=threads)  # type: ignore[arg-type]
    loading = _status("VmHWM")
    cleared = _clear_peak()
    session.warm_up(batch, runs=runs)
    return PeakMemory(before, loading, _status("VmHWM") if cleared else None)


def _status(key: str) -> int | None:
    """A size of this process by Linux's accounts.

    ``getrusage`` would not do: its peak is that of the parent, where that was larger when the process was started.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _clear_peak() -> bool:
    try:
        _CLEAR.write_text("5")  # the peak starts anew at what is resident now
    except OSError:
        return False
    return True


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    found = _measure(options.path, options.batch, options.device, options.threads, options.runs)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    _main()
