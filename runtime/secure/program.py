"""A public program as a JAX function of weights and inputs, for one shape of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autorep_fx.errors import SecureProgramError
from autorep_fx.runtime.feeds import Array, InputSpecs
from autorep_fx.runtime.secure.engine import require_jax
from autorep_fx.runtime.secure.joint import joint_nodes
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import Node, PublicProgram

__all__ = ["JaxProgram", "Parameter", "lay_out"]


@dataclass(frozen=True)
class Parameter:
    """A weight in the layout that an operation reads.

    Attributes:
        key: Name among the parameters.
        weight: Name among the program's weights.
        layout: Name of the layout; empty for the weight as it is.
        node: The operation that says how it is laid out.
        multiplied: Whether it is a factor of a product of matrices, which it pays to open once for a session.
    """

    key: str
    weight: str
    layout: str
    node: Node
    multiplied: bool


class JaxProgram:
    """A public program that JAX can trace; it is the same for every batch size.

    Args:
        program: The program.
        settings: The protocol that it is for, which decides the form of its convolutions.

    Attributes:
        public: The program.
        nodes: Its operations in the order in which they run; those that run as one call are one.
        parameters: What it takes before the inputs, in order.

    Raises:
        EngineMissingError: jax is not there.
        SecureProgramError: Operations have no form here; all of them are listed.
    """

    def __init__(self, program: PublicProgram, settings: Settings | None = None) -> None:
        require_jax()
        from autorep_fx.runtime.secure.ops.table import find_obstacles, operator_of

        obstacles = find_obstacles(program)
        if obstacles:
            raise SecureProgramError(
                "The engine has no form for some of the program:",
                fix="Nothing else stands in the way. Compile with other activations (substitute: {silu: relu}) or with "
                'polynomials alone (sites: {"kind:gelu": {mode: replace}}); or change the model.',
                obstacles=obstacles,
            )
        self.public = program
        self.nodes = self._arranged(settings)
        self._operators = {node.name: operator_of(node, settings) for node in self.nodes}
        self.parameters = tuple(_parameters(program, self.nodes, self._operators))
        self._specs = InputSpecs(
            {name: spec.shape for name, spec in program.inputs.items()},
            {name: np.dtype(np.float32) for name in program.inputs},
            {},
        )

    def _arranged(self, settings: Settings | None) -> tuple[Node, ...]:
        return joint_nodes(self.public, settings)

    def feed(self, *args: Array) -> list[Array]:
        """Inputs in order, as float32.

        Raises:
            DataError: They do not fit the program, or are not finite, which fixed point cannot say.
        """
        values = [np.asarray(value, dtype=np.float32) if _is_floating(value) else np.asarray(value) for value in args]
        feed = self._specs.feed(values, {})
        self._specs.refuse([text for name, value in feed.items() for text in _not_finite(name, value)])
        return list(feed.values())

    def check_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Refuse shapes of inputs that do not fit the program.

        Raises:
            DataError: They do not.
        """
        self._specs.feed([np.broadcast_to(np.float32(0), shape) for shape in shapes], {})

    def lay_out(self, weights: Mapping[str, Array]) -> list[Array]:
        """The parameters' values: weights in the layouts that operations read."""
        return lay_out(self.parameters, weights, self._operators)

    def __call__(self, parameters: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Compute the outputs; ``parameters`` and ``inputs`` may be tracers.

        Raises:
            SecureProgramError: An operation cannot be computed on values of these shapes.
        """
        given = {p.key: value for p, value in zip(self.parameters, parameters, strict=True)}
        values: dict[str, Any] = {"": None, **self.public.constants}
        values |= {p.weight: given[p.key] for p in self.parameters if not p.layout}
        values |= dict(zip(self.public.inputs, inputs, strict=True))
        for node in self.nodes:
            values |= self.run_node(node, values, given)
        return tuple(values[name] for name in self.public.outputs)

    def parameters_of(self, node: Node) -> list[int]:
        """Places of the parameters that one operation reads."""
        keys = [key for _, _, key in _weights_of(node, self.public, self._operators)]
        return [i for i, parameter in enumerate(self.parameters) if parameter.key in keys]

    def run_node(self, node: Node, values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Compute one operation.

        Args:
            node: The operation.
            values: What it may read, by name: constants, values of other operations, weights that have no layout.
            given: Parameters by key.

        Returns:
            Its outputs by name; what depends on constants and shapes alone is an array of numpy.

        Raises:
            SecureProgramError: It cannot be computed on values of these shapes.
        """
        made = self._run(node, values, given)
        return dict(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False))

    def _run(self, node: Node, values: dict[str, Any], given: Mapping[str, Any]) -> Any:
        from autorep_fx.runtime.secure.ops.call import Call

        entry = self._operators[node.name]
        layouts = entry.layouts or {}

        def laid_out(index: int) -> Any:
            name, (layout, function) = node.inputs[index], layouts[index]
            key = _key(name, layout, node)
            return given[key] if key in given else function(values[name], node)

        args = [values[name] if name in values else self._shape_only(name) for name in node.inputs]
        try:
            return entry.run(Call(node, args, laid_out))
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise SecureProgramError(
                f"{node.name} ({node.operator}) cannot be computed.",
                received=f"{error}; shapes {', '.join(str(np.shape(a)) for a in args if a is not None)}",
                fix="Check the model with `autorep-fx verify`, and split it again.",
            ) from error

    def _shape_only(self, name: str) -> Any:
        """Stands for a weight that is only there in another layout; its shape is what an operation may ask for."""
        return np.broadcast_to(np.float32(np.nan), [int(size) for size in self.public.weights[name].shape])


def lay_out(parameters: Sequence[Parameter], weights: Mapping[str, Array], operators: Mapping[str, Any]) -> list[Array]:
    """Values from the server's weights, contiguous: float32, or int32 where a layout makes integers."""
    result = []
    for parameter in parameters:
        value: Any = weights[parameter.weight]
        if parameter.layout:
            layouts = operators[parameter.node.name].layouts
            function = next(function for name, function in layouts.values() if name == parameter.layout)
            value = function(value, parameter.node)
        value = np.asarray(value)
        result.append(np.ascontiguousarray(value, dtype=np.float32 if _is_floating(value) else np.int32))
    return result


def _parameters(program: PublicProgram, nodes: Sequence[Node], operators: Mapping[str, Any]) -> list[Parameter]:
    """Each weight in each layout that is read, once."""
    found: dict[str, Parameter] = {}
    for node in nodes:
        for name, layout, key in _weights_of(node, program, operators):
            multiplied = bool(layout) or (node.operator == "MatMul" and len(program.weights[name].shape) == 2)
            found.setdefault(key, Parameter(key, name, layout, node, multiplied))
    for name in program.outputs:
        if name in program.weights:
            found.setdefault(name, Parameter(name, name, "", nodes[0], False))
    return list(found.values())


def _weights_of(node: Node, program: PublicProgram, operators: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Weights that an operation reads: name, layout, and key among the parameters."""
    layouts = operators[node.name].layouts or {}
    read = [
        (name, layouts[i][0] if i in layouts else "") for i, name in enumerate(node.inputs) if name in program.weights
    ]
    return [(name, layout, _key(name, layout, node)) for name, layout in read]


def _key(weight: str, layout: str, node: Node) -> str:
    """A weight's name with its layout, and with what the layout depends on."""
    return (
        f"{weight}#{layout},{node.attributes.get('group', 1)},{node.attributes.get('transB', 0)}" if layout else weight
    )


def _not_finite(name: str, value: Array) -> list[str]:
    if value.dtype.kind != "f" or np.isfinite(value).all():
        return []
    rows = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(1))
    listed = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return [f"input {name!r} is not finite at sample {listed} of the query"]


def _is_floating(value: Any) -> bool:
    return bool(np.asarray(value).dtype.kind == "f")
