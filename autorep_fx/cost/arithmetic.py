"""Multiplications of a lowered fx graph: by weights (MACs) and between values (what HE and MPC pay for)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autorep_fx.cost.fx_count import node_comparisons, operator_name, output_shape

if TYPE_CHECKING:
    from torch import fx

__all__ = ["CostReport", "NodeCost", "graph_cost"]


@dataclass(frozen=True)
class NodeCost:
    """What one node costs, for one sample.

    Attributes:
        name: Node name.
        operator: ATen operator.
        comparisons: Nominal comparisons.
        multiplications: Products of two values that both depend on the input.
        macs: Multiply-accumulates with weights, and products with constants.
    """

    name: str
    operator: str
    comparisons: int
    multiplications: int
    macs: int


@dataclass(frozen=True)
class CostReport:
    """Costs of a compiled model, for one sample.

    Attributes:
        nodes: Nodes with any cost, in execution order.
    """

    nodes: tuple[NodeCost, ...]

    def __str__(self) -> str:
        lines = [f"{'comparisons':>14} {'products':>14} {'MACs':>16}  node"]
        lines += [
            f"{n.comparisons:>14,} {n.multiplications:>14,} {n.macs:>16,}  {n.name} ({n.operator})" for n in self.nodes
        ]
        lines.append(f"{self.comparisons:>14,} {self.multiplications:>14,} {self.macs:>16,}  total")
        return "\n".join(lines)

    @property
    def comparisons(self) -> int:
        """Nominal comparisons."""
        return sum(node.comparisons for node in self.nodes)

    @property
    def multiplications(self) -> int:
        """Products of two values that both depend on the input."""
        return sum(node.multiplications for node in self.nodes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates with weights."""
        return sum(node.macs for node in self.nodes)


def graph_cost(nodes: Sequence[fx.Node]) -> CostReport:
    """Cost of every node of a lowered graph whose shapes are recorded."""
    secret: dict[Any, bool] = {}
    result = []
    for node in nodes:
        secret[node] = node.op == "placeholder" or any(secret.get(n, False) for n in node.all_input_nodes)
        products, macs = _products(node, secret)
        cost = NodeCost(node.name, operator_name(node), node_comparisons(node) if secret[node] else 0, products, macs)
        if cost.comparisons or products or macs:
            result.append(cost)
    return CostReport(tuple(result))


def _products(node: fx.Node, secret: dict[Any, bool]) -> tuple[int, int]:
    """Products between values, and products with weights or constants."""
    name, elements = operator_name(node), math.prod(output_shape(node))
    if name.startswith("conv"):
        weight: Any = node.args[1]
        shape = weight.meta["val"].shape if "val" in weight.meta else ()
        if "transpose" in name:
            source: Any = node.args[0]
            return 0, math.prod(output_shape(source)) * math.prod(shape[1:])
        return 0, elements * math.prod(shape[1:])
    if name in ("linear", "matmul", "mm", "bmm", "addmm"):
        left, right = node.args[1:3] if name == "addmm" else node.args[0:2]
        inner = output_shape(left)[-1] if hasattr(left, "meta") and output_shape(left) else 1  # type: ignore[arg-type]
        both = secret.get(left, False) and secret.get(right, False)
        return (elements * inner, 0) if both else (0, elements * inner)
    if name in ("mul", "square"):
        factors = [a for a in node.args[:2] if hasattr(a, "meta")]
        both = name == "square" or (len(factors) == 2 and all(secret.get(f, False) for f in factors))
        return (elements, 0) if both else (0, elements)
    if name in ("batch_norm", "div"):
        return 0, elements
    return 0, 0
