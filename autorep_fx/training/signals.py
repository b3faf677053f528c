"""A request to stop, by SIGTERM: the step that runs is ended and saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["StopRequest"]


class StopRequest:
    """While it is entered, SIGTERM sets :attr:`requested` instead of ending the process.

    Only the main thread can handle signals; elsewhere nothing is changed.

    Attributes:
        requested: Whether the signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> Self:
        """Begin to listen."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was there."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
