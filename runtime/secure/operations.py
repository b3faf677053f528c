"""What is run to measure the engine's operations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from autorep_fx.cost.squares import opens_once
from autorep_fx.runtime.secure.measurements import Workload
from autorep_fx.runtime.secure.ops.call import Value
from autorep_fx.runtime.secure.ops.squares import square
from autorep_fx.runtime.secure.protocols import Settings

__all__ = ["elementwise", "in_step", "product_of"]


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


def in_step(workload: Workload) -> Workload:
    """The same after an operation of one element, at which parties that begin late are waited for.

    That wait, which an operation in the middle of a program does not have, would count as its own.
    """
    comparing = "compare" in workload.kernels

    def function(x: Value, *others: Value) -> Value:
        first = x.reshape(-1)[:1]
        waited = first * first if comparing else jnp.maximum(first, 0)
        return workload.function(x + waited.reshape((1,) * x.ndim), *others)

    return Workload(function, workload.shapes, workload.kernels)


def product_of(sizes: tuple[int, int, int]) -> Workload:
    """A product of matrices of one shape, whatever the size that is asked for."""
    rows, inner, columns = sizes
    return Workload(lambda x, y: x @ y, lambda _: [(rows, inner), (inner, columns)], {"matmul": ("mmul_aa",)})
