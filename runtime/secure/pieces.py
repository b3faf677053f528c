"""A query cut into one program per operation, so that the engine's counters are those of that operation.

The engine sums its counters over a whole program, by kind of operation; its traces name every call, but not what the
call sent, and they print what travels. Programs of one operation each, run one after the other in one session, have
counters of their own: nothing has to be attributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autorep_fx.errors import SecureProgramError
from autorep_fx.runtime.secure.executables import Compiler, Executable, input_name, output_name, weight_name
from autorep_fx.runtime.secure.public import Node

__all__ = ["Piece", "PieceCompiler"]


@dataclass(frozen=True)
class Piece:
    """One operation of the public program, compiled.

    Attributes:
        node: The operation.
        executable: Its program.
    """

    node: Node
    executable: Executable


class PieceCompiler(Compiler):
    """Compiles every operation of a query for itself.

    1. What depends on constants and shapes alone is computed here, as it is when a query is compiled as a whole.
    2. An operation reads the parameters and values that it names, and leaves what it makes at the engine.
    3. Outputs of the program have the names that they have after a query.
    """

    def pieces(self, shapes: Sequence[tuple[int, ...]]) -> list[Piece]:
        """The operations that compute on secret values, in order, for inputs of these shapes.

        Raises:
            SecureProgramError: An output of the program is made by no operation on secret values.
        """
        public = self.program.public
        state = _State(dict(public.constants), {}, self.parameter_specs())
        state.known[""] = None
        for i, (name, shape) in enumerate(zip(public.inputs, shapes, strict=True)):
            state.secret[name] = (input_name(i), _floats(shape))
        names = {name: output_name(i) for i, name in enumerate(public.outputs)}
        found = [piece for node in self.program.nodes if (piece := self._piece(node, state, names)) is not None]
        missing = [name for name in names if name not in state.secret or state.secret[name][0] != names[name]]
        if missing:
            raise SecureProgramError(
                "An output is computed by no operation, so that a run cannot be cut into operations.",
                received=", ".join(map(repr, missing)), fix="Run without a profile.",
            )  # fmt: skip
        return found

    def _piece(self, node: Node, state: _State, names: dict[str, str]) -> Piece | None:
        """One operation; adds what it makes to the state."""
        import jax

        parameters = self.program.parameters_of(node)
        read = [name for name in dict.fromkeys(node.inputs) if name in state.secret]
        abstract = [state.specs[i] for i in parameters] + [state.secret[name][1] for name in read]
        public: dict[str, Any] = {}

        def compute(*values: Any) -> dict[str, Any]:
            chosen = [self.program.parameters[i] for i in parameters]
            given = {p.key: value for p, value in zip(chosen, values, strict=False)}
            plain = {p.weight: given[p.key] for p in chosen if not p.layout}
            secret = dict(zip(read, values[len(chosen) :], strict=True))
            made = self.program.run_node(node, {**state.known, **plain, **secret}, given)
            public.update({name: value for name, value in made.items() if not isinstance(value, jax.Array)})
            return {name: value for name, value in made.items() if name and name not in public}

        made = jax.eval_shape(compute, *abstract)
        state.known |= public
        if not made:
            return None
        inputs = [weight_name(i) + ("-opened" if i in self.cached else "") for i in parameters]
        inputs += [state.secret[name][0] for name in read]
        order = list(made)
        variables = [names.get(name, f"value-{name}") for name in order]
        state.secret |= {name: (variable, made[name]) for name, variable in zip(order, variables, strict=True)}

        def outputs(*values: Any) -> tuple[Any, ...]:
            results = compute(*values)
            return tuple(results[name] for name in order)

        return Piece(node, self._compile(outputs, abstract, inputs, lambda i: variables[i]))


@dataclass
class _State:
    """Values when an operation begins.

    Attributes:
        known: Public values by name.
        secret: Secret values by name: the variable at the engine, and shape and type.
        specs: Shapes and types of all parameters.
    """

    known: dict[str, Any]
    secret: dict[str, tuple[str, Any]]
    specs: list[Any]


def _floats(shape: Sequence[int]) -> Any:
    import jax

    return jax.ShapeDtypeStruct(tuple(shape), np.float32)
