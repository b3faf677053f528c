"""Every operator that has a form in the engine."""

from __future__ import annotations

from collections.abc import Mapping

from autorep_fx.cost.convolutions import multiplies_first
from autorep_fx.cost.squares import opens_once
from autorep_fx.runtime.secure.joint import JointNode
from autorep_fx.runtime.secure.ops import elementwise, indexing, linear, pooling, shaping, writes
from autorep_fx.runtime.secure.ops.call import Operator
from autorep_fx.runtime.secure.ops.joint import joint_operator
from autorep_fx.runtime.secure.ops.shifted import SHIFTED_CONV
from autorep_fx.runtime.secure.ops.squares import OPENED_ONCE
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import Node, PublicProgram

__all__ = ["OPERATORS", "find_obstacles", "operator_of"]

OPERATORS: Mapping[str, Operator] = {
    **elementwise.OPERATORS, **indexing.OPERATORS, **linear.OPERATORS, **pooling.OPERATORS, **shaping.OPERATORS,
    **writes.OPERATORS,
}  # fmt: skip


def operator_of(node: Node, settings: Settings | None) -> Operator:
    """The form of an operation that the protocol is charged least for; None for settings is the one in the clear."""
    if isinstance(node, JointNode):
        return joint_operator(node, opened_once=settings is not None and opens_once(settings.protocol))
    if settings is None:
        return OPERATORS[node.operator]
    if node.operator == "Conv":
        kernel, strides = (node.attributes.get(name, ()) for name in ("kernel_shape", "strides"))
        if kernel and multiplies_first(settings.protocol, settings.ring_bits, kernel, strides):
            return SHIFTED_CONV
    if node.operator == "Mul" and len(set(node.inputs)) == 1 and opens_once(settings.protocol):
        return OPENED_ONCE
    if node.operator == "ScatterElements":
        return writes.WRITTEN_BY_A_GATHER if settings.ring_bits == 32 else writes.WRITTEN_BY_SUMS
    return OPERATORS[node.operator]


def find_obstacles(program: PublicProgram) -> list[str]:
    """Everything in a program that has no form in the engine, as texts; each operator that is missing once."""
    missing: dict[str, list[str]] = {}
    problems = []
    for node in program.nodes:
        entry = OPERATORS.get(node.operator)
        if entry is None:
            missing.setdefault(node.operator, []).append(node.name)
        else:
            problems += [f"{node.name} ({node.operator}): {text}" for text in entry.obstacles(node)]
    return [
        f"the operator {operator}, at {names[0]}" + _and_more(len(names) - 1) for operator, names in missing.items()
    ] + problems


def _and_more(count: int) -> str:
    return f" and {count} other{'s' * (count > 1)}" if count else ""
