"""``count_comparisons``: what a graph spends, from the graph that runs."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from autorep_fx.cost.fx_count import input_dependent, node_comparisons
from autorep_fx.cost.onnx_count import count_onnx, load_model
from autorep_fx.errors import ConfigError

__all__ = ["count_comparisons", "count_sites"]


def count_comparisons(path_or_module: Any) -> int:
    """Nominal secure comparisons for one sample, counted in the graph that runs.

    Args:
        path_or_module: Path of an ONNX file, or a captured, gated or compiled module.

    Raises:
        ModelFileError: The file is not a valid ONNX model.
        ConfigError: A module that is not captured, and so has no graph to count.
    """
    return sum(count_sites(path_or_module).values())


def count_sites(path_or_module: Any) -> dict[str, int]:
    """The same by node name; nodes without comparisons are left out."""
    if isinstance(path_or_module, (str, Path)):
        totals: Counter[str] = Counter()
        for count in count_onnx(load_model(path_or_module)):
            totals[count.name] += count.comparisons
        return dict(totals)
    return _count_module(path_or_module)


def _count_module(module: Any) -> dict[str, int]:
    torch_fx = sys.modules.get("torch.fx")  # a module argument means that torch is loaded; never load it here
    # A compiled model holds its graph as `module`, a gated one as `network`.
    held = (module, getattr(module, "module", None), getattr(module, "network", None))
    network = next((m for m in held if torch_fx is not None and isinstance(m, torch_fx.GraphModule)), None)
    if network is None:
        raise ConfigError(
            "Only a captured module has a graph that can be counted.",
            received=type(module).__name__,
            fix="Pass a compiled model, the result of autorep_fx.capture(model, example_inputs), or an ONNX file.",
        )
    result: dict[str, int] = {}
    dependent = input_dependent(network.graph.nodes)
    for node in network.graph.nodes:
        if node not in dependent:
            continue
        if node.op == "call_module":
            gate = network.get_submodule(str(node.target))
            number = int(gate.kept_comparisons) if hasattr(gate, "kept_comparisons") else 0
        else:
            number = node_comparisons(node)
        if number:
            result[node.name] = number
    return result
