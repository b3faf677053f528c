"""The public program: a model without its numbers, which every party has."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autorep_fx.errors import SecureProgramError
from autorep_fx.files import write_text
from autorep_fx.runtime.feeds import Array

__all__ = ["PROGRAM_FILE", "WEIGHTS_FILE", "Node", "PublicProgram", "TensorSpec", "load_program"]

#: Names of the two files of a split model.
PROGRAM_FILE, WEIGHTS_FILE = "program.json", "weights.safetensors"
_FORMAT, _VERSION = "autorep-fx public program", 1
_AGAIN = "Get the file anew from whoever split the model, or split it again."


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor, with names for axes that are free."""

    shape: tuple[int | str, ...]
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {"shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class Node:
    """One operation; an absent optional input is an empty name.

    Attributes:
        name: Name, which keeps the module path.
        operator: ONNX operator.
        inputs: Names of values.
        outputs: Names of values.
        attributes: Integers, texts and lists of integers; never a number of the model.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {
            "name": self.name, "operator": self.operator, "inputs": list(self.inputs), "outputs": list(self.outputs),
            "attributes": dict(self.attributes),
        }  # fmt: skip


@dataclass(frozen=True)
class PublicProgram:
    """A graph with its shapes, kept positions and degrees, and none of the model's numbers.

    Attributes:
        inputs: Input name → shape and type.
        outputs: Output names.
        constants: Name → integers: shapes, axes, indices of kept elements.
        weights: Name → shape and type of what the server alone has.
        nodes: Operations in order.
        comparisons: Node name → nominal comparisons for one sample.
        leaks: What this file tells everyone, in sentences.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    weights: Mapping[str, TensorSpec]
    nodes: tuple[Node, ...]
    comparisons: Mapping[str, int]
    leaks: tuple[str, ...]

    def to_text(self) -> str:
        """The file's content: the same text for the same program, on one line."""
        value = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "inputs": {name: spec.to_json() for name, spec in self.inputs.items()},
            "outputs": list(self.outputs),
            "constants": {name: _constant_json(value) for name, value in self.constants.items()},
            "weights": {name: spec.to_json() for name, spec in self.weights.items()},
            "nodes": [node.to_json() for node in self.nodes],
            "comparisons": dict(self.comparisons),
            "leaks": list(self.leaks),
        }
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_text`, in hexadecimal."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    def save(self, path: Path | str) -> Path:
        """Write the file.

        Raises:
            OutputError: It cannot be written.
        """
        return write_text(path, self.to_text())


def load_program(path: Path | str) -> PublicProgram:
    """Read a public program, as a file that somebody else may have made.

    Raises:
        SecureProgramError: It is missing, damaged, of a newer format, or not consistent.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise SecureProgramError(
            f"{path} is no public program.", received=str(error).splitlines()[0], fix=_AGAIN
        ) from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise SecureProgramError(
            f"{path} is no public program.", received="a file of another kind", fix="Pass the program.json of a split."
        )
    if value.get("format_version") != _VERSION:
        raise SecureProgramError(
            f"{path} has a format that this version does not read.",
            received=f"format_version {value.get('format_version')!r}; this version reads {_VERSION}",
            fix="Use one version of autorep-fx at all parties.",
        )
    try:
        program = _from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SecureProgramError(
            f"{path} is damaged.", received=f"{type(error).__name__}: {error}", fix=_AGAIN
        ) from error
    problems = _problems(program)
    if problems:
        raise SecureProgramError(f"{path} is not consistent:", fix=_AGAIN, obstacles=problems)
    return program


def _from_json(value: Mapping[str, Any]) -> PublicProgram:
    return PublicProgram(
        inputs={name: _spec(spec) for name, spec in value["inputs"].items()},
        outputs=tuple(map(str, value["outputs"])),
        constants={name: _constant(constant) for name, constant in value["constants"].items()},
        weights={name: _spec(spec) for name, spec in value["weights"].items()},
        nodes=tuple(_node(node) for node in value["nodes"]),
        comparisons={name: int(number) for name, number in value["comparisons"].items()},
        leaks=tuple(map(str, value["leaks"])),
    )


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(size if isinstance(size, str) else int(size) for size in value["shape"])
    return TensorSpec(shape, np.dtype(value["dtype"]).name)


def _node(value: Mapping[str, Any]) -> Node:
    return Node(
        str(value["name"]), str(value["operator"]), tuple(map(str, value["inputs"])),
        tuple(map(str, value["outputs"])), dict(value["attributes"]),
    )  # fmt: skip


def _constant_json(value: Array) -> dict[str, Any]:
    return {"dtype": value.dtype.name, "shape": list(value.shape), "values": value.ravel().tolist()}


def _constant(value: Mapping[str, Any]) -> Array:
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in "iub":
        raise ValueError(f"a constant of type {dtype}")
    return np.array(value["values"], dtype=dtype).reshape([int(size) for size in value["shape"]])


def _problems(program: PublicProgram) -> list[str]:
    """What does not fit together, as texts."""
    names = Counter(node.name for node in program.nodes)
    problems = [f"{number} operations are called {name!r}" for name, number in names.items() if number > 1]
    known = {"", *program.inputs, *program.constants, *program.weights}
    for node in program.nodes:
        problems += [f"{node.name} reads {name!r}, which nothing makes" for name in node.inputs if name not in known]
        problems += [f"{node.name} makes {name!r} a second time" for name in node.outputs if name and name in known]
        known |= set(node.outputs)
    problems += [f"the output {name!r} is made by nothing" for name in program.outputs if name not in known]
    for name, spec in program.weights.items():
        if not all(isinstance(size, int) and size >= 0 for size in spec.shape) or math.prod(map(int, spec.shape)) < 1:
            problems.append(f"the weight {name!r} has no size: {spec.shape}")
    return problems
