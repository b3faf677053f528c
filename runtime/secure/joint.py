"""Operations of a public program that run as one call under a protocol."""

from __future__ import annotations

from dataclasses import dataclass

from autorep_fx.cost.joint import Group, arranged
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import Node, PublicProgram

__all__ = ["JointNode", "groups_of", "joint_nodes"]


@dataclass(frozen=True)
class JointNode(Node):
    """Several nodes as one, with the name of the first.

    Attributes:
        parts: The nodes, whose inputs and outputs are one after the other; of a sum of convolutions, these, with three
            inputs each, and the output is the sum.
    """

    parts: tuple[Node, ...] = ()


def groups_of(program: PublicProgram, protocol: str, ring_bits: int) -> list[Group]:
    """Which of the program's nodes run as one call, in the order in which they run."""
    return arranged(program.nodes, program.inputs, program.outputs, protocol=protocol, ring_bits=ring_bits)


def joint_nodes(program: PublicProgram, settings: Settings | None) -> tuple[Node, ...]:
    """The program's nodes in the order in which they run, joined where the protocol joins them."""
    if settings is None:
        return program.nodes
    groups = groups_of(program, settings.protocol, settings.ring_bits)
    return tuple(_joint([program.nodes[place] for place in group.places], summed=group.summed) for group in groups)


def _joint(nodes: list[Node], *, summed: bool) -> Node:
    first, last = nodes[0], nodes[-1]
    if len(nodes) == 1:
        return first
    parts = tuple(nodes[:-1] if summed else nodes)
    inputs = tuple(name for part in parts for name in (_with_bias(part) if summed else part.inputs))
    outputs = last.outputs if summed else tuple(part.outputs[0] for part in parts)
    return JointNode(first.name, f"{len(parts)} {first.operator}", inputs, outputs, parts=parts)


def _with_bias(convolution: Node) -> tuple[str, ...]:
    """Input, weight and bias; an empty name for a bias that is not there."""
    return (*convolution.inputs, "")[:3]
