"""JAX functions compiled for the engine, once per session and shape."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autorep_fx.errors import SecureProgramError
from autorep_fx.runtime.secure.engine import require_spu
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.protocols import Settings

__all__ = [
    "Compiler", "Executable", "compile_function", "count_comparisons", "first_use", "input_name", "output_name",
    "weight_name",
]  # fmt: skip

# What compares one secret element, in the engine's program; the type of the result comes last.
_COMPARES = re.compile(
    r"pphlo\.(?:less|less_equal|greater|greater_equal|maximum|minimum|abs|sign)\b.*(?:->|:) "
    r"tensor<(?P<shape>(?:\d+x)*)!pphlo\.secret<[^>]*>>$"
)


def weight_name(index: int) -> str:
    """Name of a shared weight at the engine."""
    return f"weight-{index}"


def input_name(index: int) -> str:
    """Name of a shared input at the engine."""
    return f"input-{index}"


def output_name(index: int) -> str:
    """Name of an output at the engine."""
    return f"output-{index}"


@dataclass(frozen=True)
class Executable:
    """A program that the engine can run.

    Attributes:
        program: The engine's own form.
        seconds: Seconds that compiling took.
        comparisons: Secret elements that it compares.
        digest: SHA-256 of its code.
    """

    program: Any
    seconds: float
    comparisons: int
    digest: str


class Compiler:
    """Compiles the two programs of a session.

    Args:
        program: The program.
        settings: Protocol settings.

    Raises:
        EngineMissingError: The engine is not there.
    """

    def __init__(self, program: JaxProgram, settings: Settings) -> None:
        require_spu()
        self.program, self.settings = program, settings
        self._queries: dict[tuple[tuple[int, ...], ...], Executable] = {}
        cached = settings.of.caches_weights
        self.cached = [i for i, p in enumerate(program.parameters) if cached and p.multiplied]

    def parameter_specs(self) -> list[Any]:
        """Shapes and types of the parameters, in their layouts."""
        import jax

        zeros = {
            name: np.broadcast_to(np.float32(0), [int(size) for size in spec.shape])
            for name, spec in self.program.public.weights.items()
        }
        return [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in self.program.lay_out(zeros)]

    def setup(self) -> Executable | None:
        """What runs once per session; None where nothing does.

        1. Weights that are factors are opened under a mask that stays, where the protocol can reuse it.
        2. First products and comparisons, where these pay for the set-up of a session.
        """
        from spu.experimental import make_cached_var

        specs = self.parameter_specs()
        if self.cached:
            names = [weight_name(i) for i in self.cached]

            def open_once(*weights: Any) -> tuple[Any, ...]:
                return tuple(make_cached_var(weight) for weight in weights)

            return self._compile(open_once, [specs[i] for i in self.cached], names, lambda i: names[i] + "-opened")
        if self.settings.of.warms_up and specs:
            return self._compile(first_use, [specs[0]], [weight_name(0)], lambda _: "first-use")
        return None

    def query(self, shapes: Sequence[tuple[int, ...]]) -> Executable:
        """The program for inputs of these shapes; compiled once."""
        import jax

        key = tuple(map(tuple, shapes))
        if key not in self._queries:
            weights = self.parameter_specs()
            given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in key]
            opened = set(self.cached)
            names = [weight_name(i) + ("-opened" if i in opened else "") for i in range(len(weights))]
            names += [input_name(i) for i in range(len(key))]
            count = len(weights)

            def query(*values: Any) -> tuple[Any, ...]:
                return self.program(values[:count], values[count:])

            self._queries[key] = self._compile(query, [*weights, *given], names, output_name)
        return self._queries[key]

    def _compile(
        self, function: Callable[..., Any], abstract: Sequence[Any], inputs: list[str],
        name_output: Callable[[int], str],
    ) -> Executable:  # fmt: skip
        return compile_function(function, abstract, inputs, name_output)


def compile_function(
    function: Callable[..., Any], abstract: Sequence[Any], inputs: list[str], name_output: Callable[[int], str]
) -> Executable:
    """Compile a function of secret values.

    Args:
        function: In JAX.
        abstract: Shape and type of every argument.
        inputs: The arguments' names at the engine.
        name_output: Names of the results there.

    Raises:
        SecureProgramError: The program has a loop.
    """
    from spu import libspu
    from spu.utils import frontend

    start = time.perf_counter()
    secret = [libspu.Visibility.VIS_SECRET] * len(abstract)
    compiled, _ = frontend.compile(
        frontend.Kind.JAX, function, abstract, {}, inputs, secret,
        lambda flat: [name_output(i) for i in range(len(flat))],
    )  # fmt: skip
    code = compiled.code if isinstance(compiled.code, bytes) else compiled.code.encode()
    text = code.decode()
    if "pphlo.while" in text:
        raise SecureProgramError(
            "The compiled program has a loop, which the engine runs element by element.",
            fix="This is a defect of the program's operators: report it with the model.",
        )
    return Executable(compiled, time.perf_counter() - start, count_comparisons(text), hashlib.sha256(code).hexdigest())


def count_comparisons(text: str) -> int:
    """Secret elements that a program of the engine compares."""
    result = 0
    for line in text.splitlines():
        found = _COMPARES.search(line.strip())
        if found:
            result += math.prod(int(size) for size in found["shape"].split("x") if size)
    return result


def first_use(weight: Any) -> Any:
    """A product of matrices and one of elements, on one number, and as many comparisons as make first reserves.

    CHEETAH cuts calls into pieces of at least 2,048 elements, and the second has reserves of its own. The elements
    differ, as one comparison would do for equal ones.
    """
    import jax.numpy as jnp

    one = weight.reshape(-1)[:1].reshape(1, 1)
    return jnp.maximum(one @ one * one + np.linspace(-1, 1, 2 * 2048, dtype=np.float32), 0)
