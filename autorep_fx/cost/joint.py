"""Which operations of a graph a protocol runs as one call, and in what order: a call costs messages, however small."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autorep_fx.cost.squares import opens_once

__all__ = ["PART_OF_NORM", "Group", "Step", "arranged"]

#: Ends the name of the first of the two values that a public program splits a batch norm into: no product in ONNX.
PART_OF_NORM = ".scaled"

_JOINED = ("Relu", "Mul")
_PROTOCOLS = ("semi2k", "aby3")
_SIZES = {"Shape", "Size"}


class Step(Protocol):
    """What is read of a node; an absent optional input is an empty name."""

    @property
    def operator(self) -> str: ...
    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Group:
    """Nodes that run as one call.

    Attributes:
        places: Of the nodes.
        summed: Whether they are two convolutions and, last, their sum.
    """

    places: tuple[int, ...]
    summed: bool = False


def arranged(
    nodes: Sequence[Step], inputs: Collection[str], outputs: Collection[str], *, protocol: str, ring_bits: int,
    integers: Collection[str] = (),
) -> list[Group]:  # fmt: skip
    """Nodes in the order in which they run, those that run as one call together.

    1. Under ABY3 two convolutions that are only added are one product, of the windows of both beside each other: it is
       charged for its result alone. Not in a ring of 32 bits, in which the engine survives small products only.
    2. What can run runs, until all that is left waits for a ReLU or a product of two values; then all ReLUs that can
       run are one call, or else all products are, or all squares where these open their factor once. So the product
       that brings kept elements to the scale of a square is one call with it.

    The calls of CHEETAH are cut into pieces and draw from reserves; these stay as they are.

    Args:
        nodes: In an order in which they could run.
        inputs: Values that nobody but the client knows.
        outputs: Values that have to be made.
        protocol: Name of the protocol; of another than SEMI2K and ABY3 every node is a call.
        ring_bits: Bits of its ring.
        integers: Values that are no fixed-point numbers; what makes them is a call of its own.
    """
    if protocol not in _PROTOCOLS:
        return [Group((place,)) for place in range(len(nodes))]
    secret = _dependent(nodes, inputs)
    sums = _sums_of_convolutions(nodes, secret, outputs) if protocol == "aby3" and ring_bits > 32 else {}
    absorbed = {place for pair in sums.values() for place in pair}
    units = [(*sums.get(place, ()), place) for place in range(len(nodes)) if place not in absorbed]
    kinds = [_kind(nodes[unit[-1]], secret - set(integers), protocol) for unit in units]
    return [
        Group(tuple(place for unit in units_of for place in units[unit]), units[units_of[0]][-1] in sums)
        for units_of in _Schedule(nodes, units, kinds).run()
    ]


def _dependent(nodes: Iterable[Step], inputs: Collection[str]) -> set[str]:
    """Values that depend on an input, and not on sizes alone."""
    found = set(inputs)
    for node in nodes:
        if node.operator not in _SIZES and any(name in found for name in node.inputs if name):
            found.update(node.outputs)
    return found - {""}


def _sums_of_convolutions(
    nodes: Sequence[Step], secret: Collection[str], outputs: Collection[str]
) -> dict[int, tuple[int, int]]:
    """Place of a sum → those of the two convolutions that nothing else reads."""
    readers = Counter(name for node in nodes for name in node.inputs)
    readers.update(outputs)
    made = {
        node.outputs[0]: place for place, node in enumerate(nodes)
        if node.operator == "Conv" and node.attributes.get("group", 1) == 1 and node.inputs[0] in secret
        and node.inputs[1] not in secret and readers[node.outputs[0]] == 1
    }  # fmt: skip
    return {
        place: (made[node.inputs[0]], made[node.inputs[1]]) for place, node in enumerate(nodes)
        if node.operator == "Add" and all(name in made for name in node.inputs)
    }  # fmt: skip


def _kind(node: Step, secret: Collection[str], protocol: str) -> str:
    """Kind of a call that can have several nodes; empty for any other."""
    if node.operator not in _JOINED or node.outputs[0] not in secret:
        return ""
    if node.operator != "Mul":
        return node.operator
    if node.outputs[0].endswith(PART_OF_NORM):
        return ""
    return "square" if len(set(node.inputs)) == 1 and opens_once(protocol) else "Mul"


@dataclass
class _Schedule:
    """Runs units of nodes as soon as they can, and those of a kind as late as they can, all that are ready at once."""

    nodes: Sequence[Step]
    units: Sequence[tuple[int, ...]]
    kinds: Sequence[str]
    ready: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> list[list[int]]:
        maker = {name: i for i, unit in enumerate(self.units) for name in self.nodes[unit[-1]].outputs if name}
        waits = [{maker[name] for place in unit for name in self.nodes[place].inputs if name in maker} - {i}
                 for i, unit in enumerate(self.units)]  # fmt: skip
        readers: dict[int, list[int]] = {}
        for i, makers in enumerate(waits):
            for one in makers:
                readers.setdefault(one, []).append(i)
            if not makers:
                self._add(i)
        result = []
        while group := self._next():
            result.append(group)
            for i in group:
                for reader in readers.get(i, ()):
                    waits[reader].discard(i)
                    if not waits[reader]:
                        self._add(reader)
        return result

    def _add(self, unit: int) -> None:
        heapq.heappush(self.ready.setdefault(self.kinds[unit], []), unit)

    def _next(self) -> list[int]:
        """The first of those that run alone, or all of one kind; nothing at the end."""
        if self.ready.get(""):
            return [heapq.heappop(self.ready[""])]
        return next((sorted(self.ready.pop(kind)) for kind in ("Relu", "Mul", "square") if self.ready.get(kind)), [])
