"""From what torch.export gives to one flat, functional graph, or one error that lists all that stands in the way."""

from __future__ import annotations

from torch import fx

from autorep_fx.cost.dependence import input_dependent
from autorep_fx.cost.fx_count import uncountable_reason
from autorep_fx.errors import UnsupportedModelError
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.functionalize import FunctionalizePass
from autorep_fx.passes.inline import InlinePass
from autorep_fx.passes.source import location

__all__ = ["flat_module", "uncountable"]


def flat_module(traced: fx.GraphModule) -> CapturedModule:
    """The functional graph of what torch.export gave, without higher-order operations.

    Raises:
        UnsupportedModelError: With the obstacles of all steps.
    """
    for node in traced.graph.find_nodes(op="call_module", target="_guards_fn"):
        traced.graph.erase_node(node)  # torch's own checks of the inputs' sizes
    module = CapturedModule(traced, traced.graph)
    module.meta.clear()  # torch.export leaves its own hooks' bookkeeping here, which does not copy
    module.training = False
    found = _vmapped(module)
    for step in (InlinePass(), FunctionalizePass()):
        try:
            step(module)
        except UnsupportedModelError as error:
            found.append(error)
    if found:
        fixes = dict.fromkeys(error.fix for error in found if error.fix)
        obstacles = [text for error in found for text in error.obstacles]
        raise UnsupportedModelError([*obstacles, *uncountable(module)], fix=" ".join(fixes))
    return module


def _vmapped(module: fx.GraphModule) -> list[UnsupportedModelError]:
    """One error for what torch.vmap leaves in a graph: calls that only its own interpreter can run."""
    nodes = [node for node in module.graph.nodes if "_functorch" in str(getattr(node.target, "__module__", ""))]
    where = dict.fromkeys(location(node) or node.name for node in nodes)
    if not where:
        return []
    return [
        UnsupportedModelError(
            [f"torch.vmap ({place}) has no form in a flat graph" for place in where],
            fix="Write for whole batches what torch.vmap maps over them.",
        )
    ]


def uncountable(module: fx.GraphModule) -> list[str]:
    """Calls whose comparisons no rule counts, which would be refused next, once other obstacles are gone."""
    dependent = input_dependent(module.graph.nodes)
    reasons = {node: uncountable_reason(node) for node in module.graph.nodes if node in dependent}
    return [f"{n.target} ({location(n) or n.name}) {reason}" for n, reason in reasons.items() if reason is not None]
