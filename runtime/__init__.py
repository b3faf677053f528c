"""Runs compiled artefacts; imports without torch."""

from __future__ import annotations

from autorep_fx.runtime.session import Session

__all__ = ["Session"]
