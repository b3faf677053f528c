"""A process that native code ends says why, and with the status that it should have."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import ctypes, sys, threading, time
from autorep_fx.runtime.secure.native_exit import on_native_exit

def report():
    time.sleep(0.5)
    print("lost", file=sys.stderr, flush=True)
    {defect}

on_native_exit(report)
threads = [threading.Thread(target=ctypes.CDLL(None).exit, args=(255,)) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def _end(defect: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(defect=defect)], capture_output=True, text=True, timeout=60
    )


def test_the_report_is_made_and_the_status_is_ours() -> None:
    done = _end()
    assert (done.returncode, done.stderr.strip()) == (1, "lost")


def test_a_defect_in_the_report_ends_the_process_all_the_same() -> None:
    done = _end("raise ValueError('defect')")
    assert done.returncode == 1 and "lost" in done.stderr
