"""A process that native code ends says why, and with the status that it should have."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import ctypes, os, sys, threading
from autorep_fx.runtime.secure.native_exit import on_native_exit

on_native_exit("lost\\n")
{before}
threading.stack_size(64 * 1024)  # of the size that the engine's threads have
threads = [threading.Thread(target=ctypes.CDLL(None).exit, args=(255,)) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def _end(before: str = "") -> tuple[int, str]:
    program = _PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_the_message_is_written_once_and_the_status_is_ours() -> None:
    assert _end() == (1, "lost\n")


def test_the_status_is_ours_where_nobody_reads() -> None:
    assert _end("os.close(2)") == (1, "")
