"""The JAX program in the clear: what secure execution has to equal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.split import Split

__all__ = ["PlainRun", "run_plain"]


@dataclass(frozen=True)
class PlainRun:
    """Outputs of a run in the clear.

    Attributes:
        outputs: One array per output.
        compile_seconds: Seconds that tracing and compiling took.
        seconds: Seconds that the run itself took.
    """

    outputs: tuple[Array, ...]
    compile_seconds: float
    seconds: float


def run_plain(split: Split, inputs: Sequence[Array]) -> PlainRun:
    """Run a split model in the clear, in float32.

    Raises:
        EngineMissingError: jax is not there.
        SecureProgramError: The program has operations without a form.
        DataError: The inputs do not fit.
    """
    import jax

    program = JaxProgram(split.program)
    feed, parameters = program.feed(*inputs), program.lay_out(split.weights)
    start = time.perf_counter()
    compiled = jax.jit(program).lower(parameters, feed).compile()
    middle = time.perf_counter()
    outputs = tuple(np.asarray(value) for value in compiled(parameters, feed))
    return PlainRun(outputs, middle - start, time.perf_counter() - middle)
