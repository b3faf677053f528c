"""What the tests of secure execution share: a small compiled model, and why they are skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autorep_fx.runtime.secure.engine import why_missing
from secure_models import compile_small

_MISSING = why_missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the engine where it cannot be installed."""
    for item in items:
        if _MISSING is not None and item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.skip(reason=_MISSING))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles the small model, once per granularity and share of kept gates."""
    folder = tmp_path_factory.mktemp("models")

    def get(granularity: str, kept: float = 0.4) -> Path:
        path = folder / f"{granularity}-{kept}.onnx"
        return path if path.is_file() else compile_small(path, granularity, kept)

    return get


@pytest.fixture(scope="session")
def model(compiled: Callable[..., Path]) -> Path:
    """A compiled model with element gates."""
    return compiled("element")


@pytest.fixture
def x() -> np.ndarray:
    """Two samples for it."""
    return np.random.default_rng(1).standard_normal((2, 1, 6, 6)).astype(np.float32)
