"""What is run to measure the engine's operations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from autorep_fx.cost.squares import opens_once
from autorep_fx.runtime.secure.measurements import Workload
from autorep_fx.runtime.secure.ops.squares import square
from autorep_fx.runtime.secure.protocols import Settings

__all__ = ["elementwise", "product_of"]


def elementwise(settings: Settings) -> list[Workload]:
    """What is run, and which kernels of the engine count as which operation."""
    found = [
        Workload(lambda x: jnp.maximum(x, 0), lambda n: [(n,)], {"compare": ("msb_a2b",), "select": ("mul_a1b",)}),
        Workload(lambda x, y: x * y, lambda n: [(n,), (n,)], {"product": ("mul_aa",)}),
        Workload(lambda x: x * np.float32(0.25), lambda n: [(n,)], {"truncation": ("trunc_a",)}),
    ]
    if opens_once(settings.protocol):
        found.append(Workload(square, lambda n: [(n,)], {"square": ("mmul_aa", "mul_aa")}))
    return found


def product_of(sizes: tuple[int, int, int]) -> Workload:
    """A product of matrices of one shape, whatever the size that is asked for."""
    rows, inner, columns = sizes
    return Workload(lambda x, y: x @ y, lambda _: [(rows, inner), (inner, columns)], {"matmul": ("mmul_aa",)})
