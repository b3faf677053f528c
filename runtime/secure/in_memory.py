"""Simulated parties: links in memory, and one thread for each."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from autorep_fx.errors import PeerError

__all__ = ["memory_links", "together"]

T = TypeVar("T")
_sessions = itertools.count()


def memory_links(parties: int, timeout: float) -> Callable[[int], Any]:
    """Makes the link of a rank; links of the same session wait ``timeout`` seconds for a message."""
    from spu import libspu

    description = libspu.link.Desc()
    description.id = f"autorep-{os.getpid()}-{next(_sessions)}"
    description.recv_timeout_ms = int(timeout * 1000)
    for rank in range(parties):
        description.add_party(f"party-{rank}", f"{description.id}-{rank}")
    return lambda rank: libspu.link.create_mem(description, rank)


def together(parties: int, function: Callable[[int], T]) -> list[T]:
    """Call a function for every rank at once; a party that fails ends the others within their timeout.

    Raises:
        PeerError: One failed.
    """
    results: dict[int, T] = {}
    failures: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = function(rank)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise PeerError(
            "A simulated party failed.", received=str(failures[0]).splitlines()[0],
            fix="Allow more time with --timeout; otherwise see the engine's log.",
        ) from failures[0]  # fmt: skip
    return [results[rank] for rank in sorted(results)]
