"""What the engine's own C++ writes to standard error, kept in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["divert", "refused_certificates"]

_REFUSED = "Fail to SSL_do_handshake"


def divert(path: Path) -> None:
    """Write what native code prints to standard error into a file, from now on; Python's own output stays."""
    sys.stderr.flush()
    own = os.dup(2)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 2)
    os.close(target)
    sys.stderr = os.fdopen(own, "w", encoding="utf-8", buffering=1)


def refused_certificates(paths: Sequence[Path]) -> bool:
    """Whether a TLS handshake failed, by what the engine wrote."""
    files = [path for path in paths if path.is_file()]
    return any(_REFUSED in path.read_text(encoding="utf-8", errors="replace") for path in files)
