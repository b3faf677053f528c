"""JAX functions compiled for the engine, once per session and shape."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autorep_fx.errors import ProtocolError, SecureProgramError
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.constants import constants_as_inputs
from autorep_fx.runtime.secure.engine import require_spu
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.protocols import Settings

__all__ = [
    "Compiler", "Executable", "compile_function", "count_comparisons", "first_use", "input_name", "largest_product",
    "output_name", "weight_name",
]  # fmt: skip

# What compares one secret element, in the engine's program; the type of the result comes last.
_COMPARES = re.compile(
    r"pphlo\.(?:less|less_equal|greater|greater_equal|maximum|minimum|abs|sign)\b.*(?:->|:) "
    r"tensor<(?P<shape>(?:\d+x)*)!pphlo\.secret<[^>]*>>$"
)
# A product of matrices there, with the shapes of both factors and of the result.
_SHAPE = r"tensor<((?:\d+x)*)!pphlo\.secret<[^>]*>>"
_PRODUCT = re.compile(rf"pphlo\.(dot|dot_general|convolution)\b.*: \({_SHAPE}, {_SHAPE}\) -> {_SHAPE}$")
# Multiplications of one product that spu 0.9.5 survived in a ring of 32 bits, under each protocol: it crashed
# at 102,400 and all that were larger (x86-64 with AVX-512; products of matrices and convolutions).
_SURVIVED = 96_000


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
        digest: SHA-256 of its code and of its constants' names, which say their content.
        largest_product: Most multiplications of secret numbers in one product of matrices or convolution.
        constants: Public values that it reads, by their names at the engine.
    """

    program: Any
    seconds: float
    comparisons: int
    digest: str
    largest_product: int
    constants: Mapping[str, Array]


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
        """The program for inputs of these shapes; compiled once.

        Raises:
            ProtocolError: Its products are too large for the ring.
        """
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
        made = compile_function(function, abstract, inputs, name_output)
        if self.settings.ring_bits == 32 and made.largest_product > _SURVIVED:
            raise ProtocolError(
                "The engine crashes in a product of this size in a ring of 32 bits.",
                received=f"{made.largest_product:,} multiplications; it is known to survive {_SURVIVED:,}",
                fix="Take a ring of 64 bits.",
            )
        return made


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
    traced, constants = constants_as_inputs(function, abstract)
    visible = [libspu.Visibility.VIS_SECRET] * len(abstract) + [libspu.Visibility.VIS_PUBLIC] * len(constants)
    compiled, _ = frontend.compile(
        frontend.Kind.JAX, traced, [*abstract, *constants.values()], {}, [*inputs, *constants], visible,
        lambda flat: [name_output(i) for i in range(len(flat))],
    )  # fmt: skip
    code = compiled.code if isinstance(compiled.code, bytes) else compiled.code.encode()
    text = code.decode()
    if "pphlo.while" in text:
        raise SecureProgramError(
            "The compiled program has a loop, which the engine runs element by element.",
            fix="This is a defect of the program's operators: report it with the model.",
        )
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(code + "".join(constants).encode()).hexdigest()
    return Executable(compiled, seconds, count_comparisons(text), digest, largest_product(text), constants)


def count_comparisons(text: str) -> int:
    """Secret elements that a program of the engine compares."""
    result = 0
    for line in text.splitlines():
        found = _COMPARES.search(line.strip())
        if found:
            result += math.prod(int(size) for size in found["shape"].split("x") if size)
    return result


def largest_product(text: str) -> int:
    """Multiplications of the largest product of matrices, or convolution, in a program of the engine; 0 without one."""
    result = 0
    for line in text.splitlines():
        found = _PRODUCT.search(line.strip())
        if found:
            left, right, made = ([int(size) for size in shape.split("x") if size] for shape in found.groups()[1:])
            # The engine's kernels have their outputs last; other factors are summed over their last axis.
            summed = math.prod(right[:-1]) if found[1] == "convolution" else left[-1]
            result = max(result, math.prod(made) * summed)
    return result


def first_use(weight: Any) -> Any:
    """A product of matrices and one of elements, on one number, and as many comparisons as make first reserves.

    CHEETAH cuts calls into pieces of at least 2,048 elements, and the second has reserves of its own. The elements
    differ, as one comparison would do for equal ones.
    """
    import jax.numpy as jnp

    one = weight.reshape(-1)[:1].reshape(1, 1)
    return jnp.maximum(one @ one * one + np.linspace(-1, 1, 2 * 2048, dtype=np.float32), 0)
