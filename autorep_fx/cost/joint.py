"""Which operations of a graph a protocol runs as one call, and in what order: a call costs messages, however small."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autorep_fx.cost.squares import opens_once

__all__ = ["JOINED", "Step", "arranged"]

#: Operators of which independent nodes are one call.
JOINED = ("Relu", "Mul")
_PROTOCOLS = ("semi2k", "aby3")
_SIZES = {"Shape", "Size"}
# What a public program splits a batch norm into is no product that ONNX has.
_PART_OF_NORM = ".scaled"


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


def arranged(
    nodes: Sequence[Step], inputs: Collection[str], outputs: Collection[str], protocol: str
) -> list[tuple[int, ...]]:
    """Places of nodes in the order in which they run; those of one tuple run as one call.

    1. Under ABY3 two convolutions that are only added are one product, of the windows of both beside each other: it is
       charged for its result alone. The tuple is both, and the sum.
    2. What can run runs, until all that is left waits for a ReLU or a product of two values; then all ReLUs that can
       run are one call, or else all products are, or all squares where these open their factor once. So the product
       that brings kept elements to the scale of a square is one call with it.

    The calls of CHEETAH are cut into pieces and draw from reserves; these stay as they are.

    Args:
        nodes: In an order in which they could run.
        inputs: Values that nobody but the client knows.
        outputs: Values that have to be made.
        protocol: Name of the protocol; of another than SEMI2K and ABY3 every node is a call.
    """
    if protocol not in _PROTOCOLS:
        return [(place,) for place in range(len(nodes))]
    secret = _dependent(nodes, inputs)
    sums = _sums_of_convolutions(nodes, secret, outputs) if protocol == "aby3" else {}
    absorbed = {place for pair in sums.values() for place in pair}
    units = [(*sums.get(place, ()), place) for place in range(len(nodes)) if place not in absorbed]
    return _Schedule(nodes, units, secret, protocol).run()


def _dependent(nodes: Iterable[Step], inputs: Collection[str]) -> set[str]:
    """Values that depend on an input, and not on sizes alone."""
    found = set(inputs)
    for node in nodes:
        if node.operator not in _SIZES and any(name in found for name in node.inputs):
            found.update(node.outputs)
    return found


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


@dataclass
class _Schedule:
    """Runs units of nodes as soon as they can, and those that are joined as late as they can."""

    nodes: Sequence[Step]
    units: Sequence[tuple[int, ...]]
    secret: Collection[str]
    protocol: str
    ready: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> list[tuple[int, ...]]:
        maker = {name: i for i, unit in enumerate(self.units) for name in self.nodes[unit[-1]].outputs}
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
            result.append(tuple(place for i in group for place in self.units[i]))
            for i in group:
                for reader in readers.get(i, ()):
                    waits[reader].discard(i)
                    if not waits[reader]:
                        self._add(reader)
        return result

    def _add(self, unit: int) -> None:
        heapq.heappush(self.ready.setdefault(self._kind(self.nodes[self.units[unit][-1]]), []), unit)

    def _next(self) -> list[int]:
        """The first of those that run alone, or all of one kind; nothing at the end."""
        if self.ready.get(""):
            return [heapq.heappop(self.ready[""])]
        return next((sorted(self.ready.pop(kind)) for kind in ("Relu", "Mul", "square") if self.ready.get(kind)), [])

    def _kind(self, node: Step) -> str:
        """Kind of a call that can have several nodes; empty for any other."""
        if node.operator not in JOINED or not any(name in self.secret for name in node.inputs):
            return ""
        if node.operator != "Mul":
            return node.operator
        if node.outputs[0].endswith(_PART_OF_NORM):
            return ""
        return "square" if len(set(node.inputs)) == 1 and opens_once(self.protocol) else "Mul"
