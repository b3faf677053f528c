"""A public program in fixed-point arithmetic, emulated: what a ring and its fraction bits make of its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autorep_fx.errors import ProtocolError
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.joint import groups_of
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import Node, PublicProgram
from autorep_fx.runtime.secure.split import Split

__all__ = ["Emulation", "NodeRange", "check_headroom", "choose_settings", "emulate"]

# Operators whose result has twice the fraction bits before it is truncated.
_PRODUCTS = {"Conv", "Gemm", "MatMul", "Mul", "Div", "LeakyRelu", "PRelu"}
_MEANS = {"AveragePool", "GlobalAveragePool", "ReduceMean"}
# Resolution below which no ring is chosen, 2⁻¹² = 2.4e-4, and beyond which more bits are of no use.
_COARSEST, _FINEST = 12, 20


@dataclass(frozen=True)
class NodeRange:
    """How far one operation reaches.

    Attributes:
        name: Node name, which keeps the module path.
        operator: ONNX operator.
        largest: Largest magnitude of its result on the samples.
        product: Whether its result has twice the fraction bits before it is truncated.
    """

    name: str
    operator: str
    largest: float
    product: bool

    def headroom(self, settings: Settings) -> float:
        """Bits between the largest result, before truncation, and the ring's signed range; negative: it wrapped."""
        used = settings.fraction_bits * (2 if self.product else 1)
        return settings.ring_bits - 1 - used - math.log2(max(self.largest, 2.0**-settings.fraction_bits))


@dataclass(frozen=True)
class Emulation:
    """A run in emulated fixed point.

    Attributes:
        outputs: One array ``(N, ...)`` per output, float64.
        ranges: Every operation on values that depend on the inputs, in order.
    """

    outputs: tuple[Array, ...]
    ranges: tuple[NodeRange, ...]


class _Emulated(JaxProgram):
    """The program with every result brought to the grid of ``fraction_bits``, or as it is, and its reach noted."""

    def __init__(self, program: PublicProgram, settings: Settings | None, protocol: str) -> None:
        from autorep_fx.runtime.secure.ops.table import operator_of

        super().__init__(program, settings)
        # Squares are squares here, and writes are writes: an engine's forms open what is none of its numbers, for which
        # JAX alone has no form, and count on a ring.
        forms = {"Mul", "ScatterElements"}
        self._operators |= {node.name: operator_of(node, None) for node in program.nodes if node.operator in forms}
        ring_bits = settings.ring_bits if settings else 64
        sums = [group.places[-1] for group in groups_of(program, protocol, ring_bits) if group.summed]
        doubled = {program.nodes[place].name for place in sums}
        doubled |= {node.name for node in program.nodes if node.operator in _PRODUCTS | _MEANS}
        self.doubled = doubled  # results that have twice the fraction bits before they are truncated
        self._settings = settings
        self.reach: dict[str, Any] = {}

    def _arranged(self, settings: Settings | None) -> tuple[Node, ...]:
        return self.public.nodes  # each with a range of its own

    def _run(self, node: Node, values: dict[str, Any], given: Mapping[str, Any]) -> Any:
        made = super()._run(node, values, given)
        if isinstance(made, (tuple, np.ndarray)):  # pieces of a value that is on the grid; what is public
            return made
        import jax.numpy as jnp

        self.reach[node.name] = jnp.abs(made).max() if made.size else jnp.zeros(())
        if self._settings is None or not jnp.issubdtype(made.dtype, jnp.floating):
            return made
        if node.operator in _MEANS:
            made = made * self._reciprocal_error(node, values, made)
        return _on_grid(made, self._settings, 2 if node.name in self.doubled else 1)

    def _reciprocal_error(self, node: Node, values: dict[str, Any], made: Any) -> float:
        """What rounding 1/n to the grid makes of a mean over n values."""
        kernel = node.attributes.get("kernel_shape")
        count = math.prod(kernel) if kernel else values[node.inputs[0]].size // max(made.size, 1)
        assert self._settings is not None
        return float(_encode(np.float64(1 / max(count, 1)), self._settings) * max(count, 1))


def _encode(value: Any, settings: Settings) -> Any:
    scale = 2.0**settings.fraction_bits
    return np.trunc(np.asarray(value, dtype=np.float64) * scale) / scale


def _on_grid(value: Any, settings: Settings, doubled: int) -> Any:
    """Truncated to the fraction bits, after wrapping where the ring is too small for it."""
    import jax.numpy as jnp

    scale, span = 2.0**settings.fraction_bits, 2.0 ** (settings.ring_bits - settings.fraction_bits * doubled)
    wrapped = jnp.where(jnp.abs(value) < span / 2, value, jnp.mod(value + span / 2, span) - span / 2)
    return jnp.floor(wrapped * scale) / scale


def emulate(
    split: Split, inputs: Sequence[Array], settings: Settings | None, *, protocol: str = "", batch: int = 64
) -> Emulation:
    """Run a split model in emulated fixed point, in float64.

    Weights and inputs are cut to the grid as the engine encodes them, and so is the result of every operation; a result
    beyond the ring wraps. What the engine truncates with a random error of one unit in the last place is rounded down
    here. float64 holds products exactly up to 53 bits; beyond, the last bits of a result are lost to it.

    Args:
        split: The model.
        inputs: Samples, each ``(N, ...)``.
        settings: Ring and fraction bits; None leaves every number as it is, to see how far it reaches.
        protocol: Name of the protocol, where there are no settings: what it joins is truncated once.
        batch: Samples at a time.

    Raises:
        EngineMissingError: jax is not there.
        SecureProgramError: The program has operations without a form.
        DataError: The inputs do not fit.
    """
    program = _Emulated(split.program, settings, settings.protocol if settings else protocol)
    program.feed(*inputs)  # all samples, before any work
    import jax
    from jax.experimental import enable_x64

    encode = (lambda value: np.asarray(value, np.float64)) if settings is None else (lambda v: _encode(v, settings))
    operators = {node.name: node.operator for node in split.program.nodes}
    parts: list[tuple[Array, ...]] = []
    largest: dict[str, float] = {}
    with enable_x64():
        laid_out = program.lay_out(split.weights)  # integers are no fixed-point numbers
        parameters = [encode(value) if value.dtype.kind == "f" else value for value in laid_out]

        def run(values: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
            program.reach = {}
            return program(parameters, values), program.reach

        compiled = jax.jit(run)
        for start in range(0, len(inputs[0]), batch):
            feed = program.feed(*(value[start : start + batch] for value in inputs))
            outputs, reach = compiled([encode(value) if value.dtype.kind == "f" else value for value in feed])
            parts.append(tuple(np.asarray(value) for value in outputs))
            for name, value in reach.items():
                largest[name] = max(largest.get(name, 0.0), float(value))
    ranges = tuple(NodeRange(name, operators[name], value, name in program.doubled) for name, value in largest.items())
    return Emulation(tuple(np.concatenate(values) for values in zip(*parts, strict=True)), ranges)


def check_headroom(ranges: Sequence[NodeRange], settings: Settings, *, bits: float = 0.0) -> None:
    """Refuse a ring that results do not fit; the engine would give no warning.

    Args:
        ranges: How far operations reach.
        settings: Ring and fraction bits.
        bits: Headroom to leave.

    Raises:
        ProtocolError: With the worst operations, and how many there are.
    """
    short = sorted((item.headroom(settings), item.name) for item in ranges if item.headroom(settings) < bits)
    if short:
        listed = ", ".join(f"{name} ({headroom:.1f} bits of headroom)" for headroom, name in short[:5])
        raise ProtocolError(
            f"Numbers of {len(short)} operation(s) do not fit a ring of {settings.ring_bits} bits with "
            f"{settings.fraction_bits} fraction bits.",
            received=listed, fix="Take fewer fraction bits, or a ring of 128 bits; see `autorep-fx secure verify`.",
        )  # fmt: skip


def choose_settings(ranges: Sequence[NodeRange], protocol: str, *, bits: float = 2.0) -> Settings:
    """The smallest ring that all results fit with at least 12 fraction bits, and up to 20 of these.

    A ring of 32 bits is never chosen: the engine crashes there in all but small products of matrices.

    Args:
        ranges: How far operations reach, without rounding.
        protocol: Name of the protocol.
        bits: Headroom to leave.

    Raises:
        ProtocolError: No ring is large enough.
    """
    for ring in (64, 128):
        for fraction in range(min(_FINEST, ring // 2 - 1), _COARSEST - 1, -1):
            settings = Settings(protocol, ring, fraction)
            if all(item.headroom(settings) >= bits for item in ranges):
                return settings
    worst = min(ranges, key=lambda item: item.headroom(settings))
    raise ProtocolError(
        "No ring of the engine is large enough.", received=f"{worst.name} reaches {worst.largest:.3g}",
        fix="Fit the polynomials with a range penalty, or use degree 1 at the sites before it.",
    )  # fmt: skip
