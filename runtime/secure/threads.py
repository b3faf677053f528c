"""Threads of the engine's products of matrices, where there are more of them than cores."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["limit_threads"]

_VARIABLE = "OMP_THREAD_LIMIT"

# Three parties of two products at a time, of two threads each: that is what a simulated ABY3 has at once.
_ENOUGH = 12


def limit_threads(cores: int | None = None, environment: MutableMapping[str, str] | None = None) -> None:
    """Give the engine's products of matrices one thread each, unless there are cores for all or it is set otherwise.

    The engine gives each two OpenMP threads, which wait for each other by spinning. On two cores the products of a
    ResNet-18 take three times as long for it (docs/secure.md). OpenMP reads the variable when it is loaded, and shares
    its setting with torch: this is for processes that do nothing but secure computation, before they load either.

    Args:
        cores: Cores to run on; None for those that the process may use.
        environment: Environment of the process; None for its own.
    """
    environment = os.environ if environment is None else environment
    if (cores or _usable()) < _ENOUGH:
        environment.setdefault(_VARIABLE, "1")


def _usable() -> int:
    """Cores that this process may run on, which are fewer than the machine's in many containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
