"""What the unit tests share: one hypothesis profile, and helpers."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

# Helpers of these tests lie beside them.
sys.path.insert(0, str(Path(__file__).parent))

# The same examples in every run, so that a failure is there again when someone looks at it.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")
