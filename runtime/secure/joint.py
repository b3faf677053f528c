"""Operations of a public program that run as one call under a protocol."""

from __future__ import annotations

from dataclasses import dataclass

from autorep_fx.cost.joint import arranged
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import Node, PublicProgram

__all__ = ["JointNode", "joint_nodes"]

# Optional inputs of a convolution are named, so that those of the second are at fixed places.
_INPUTS = {"Conv": 3}


@dataclass(frozen=True)
class JointNode(Node):
    """Several nodes as one, with the name of the first.

    Attributes:
        parts: The nodes. Their inputs are one after the other, and so are their outputs; of a sum of convolutions, the
            inputs are those of the convolutions, and the output is the sum.
    """

    parts: tuple[Node, ...] = ()


def joint_nodes(program: PublicProgram, settings: Settings | None) -> tuple[Node, ...]:
    """The program's nodes in the order in which they run, joined where the protocol joins them."""
    if settings is None:
        return program.nodes
    groups = arranged(program.nodes, program.inputs, program.outputs, settings.protocol)
    return tuple(_joint([program.nodes[place] for place in group]) for group in groups)


def _joint(nodes: list[Node]) -> Node:
    first, last = nodes[0], nodes[-1]
    if len(nodes) == 1:
        return first
    summed = last.operator != first.operator
    parts = tuple(nodes[:-1] if summed else nodes)
    inputs = tuple(
        name for part in parts for name in (*part.inputs, *[""] * (_INPUTS.get(part.operator, 0) - len(part.inputs)))
    )
    outputs = last.outputs if summed else tuple(part.outputs[0] for part in parts)
    return JointNode(first.name, f"{len(parts)} {first.operator}", inputs, outputs, parts=parts)
