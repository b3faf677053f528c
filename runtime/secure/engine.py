"""The engine and what it stands on, imported when they are first needed."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from autorep_fx.errors import EngineMissingError

__all__ = ["require_jax", "require_spu", "why_missing"]

_FIX = "pip install 'autorep-fx[secure]' in an environment with Python 3.11; spu 0.9.5 has builds for no newer one."


def require_spu() -> Any:
    """The module ``spu``.

    Raises:
        EngineMissingError: It, or jax, cannot be imported.
    """
    return _require("spu", "Secure execution needs SecretFlow SPU.")


def require_jax() -> Any:
    """The module ``jax``.

    Raises:
        EngineMissingError: It cannot be imported.
    """
    return _require("jax", "The program for the engine is written in JAX, which is not there.")


def why_missing() -> str | None:
    """Why secure execution is not possible here, in one line; None if it is."""
    try:
        require_spu()
    except EngineMissingError as error:
        return f"{error.what} {error.received}"
    return None


def _require(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a build for other versions fails in many ways
        version = ".".join(map(str, sys.version_info[:3]))
        raise EngineMissingError(
            what, received=f"Python {version}, {type(error).__name__}: {str(error).splitlines()[0]}", fix=_FIX
        ) from error
