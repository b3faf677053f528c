"""When the engine's own C++ ends the process, and how a party still says why."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["on_native_exit"]

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)
#: Threads that may call ``exit`` while the first one reports; each takes a handler off the list.
_THREADS = 1024
_registered: list[object] = []  # C keeps the address alone


def on_native_exit(message: str, code: int = 1) -> None:
    """Write ``message`` to standard error and end the process with ``code`` when anything calls C's ``exit``.

    A message that the engine could not deliver to a party that is gone ends the process from a thread of the engine,
    with code 255 and no word (``exit_if_async_error`` of yacl's link, which spu 0.9.5 does not let Python set). More
    of its threads do so at the same time; they wait, as they would destroy what others still use.

    It is for processes that end by ``os._exit`` themselves, which runs no handler. Without glibc's ``on_exit`` it does
    nothing.

    Args:
        message: Ends in a new line. It is made beforehand, as the engine's threads have too small a stack to make it.
        code: Exit status in place of the engine's.
    """
    library = ctypes.CDLL(None)
    register = getattr(library, "on_exit", None)
    if register is None:
        return
    text, target = message.encode(), sys.stderr.fileno()

    def handle(_status: int, _argument: object) -> None:
        try:
            os.write(target, text)
        finally:
            os._exit(code)

    handler = _HANDLER(handle)
    _registered.append(handler)
    register.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    for _ in range(_THREADS):
        register(ctypes.cast(library.pause, ctypes.c_void_p), None)
    register(ctypes.cast(handler, ctypes.c_void_p), None)  # the last one is the first to be called
