"""Graphs as text that a person can review, and a comparer of two such texts.

A line is ``label: op target(arguments) -> shape [site]``. Labels are an operation's name and a running number, so
that they do not depend on the names torch happens to choose, and a node more or less leaves most lines alone.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from autorep_fx.sites import Site

FOLDER = Path(__file__).parent / "golden"
VARIABLE = "AUTOREP_FX_REGENERATE"


def graph_text(module: fx.GraphModule) -> str:
    """The graph in execution order; parameters that nothing reads are left out."""
    labels: dict[fx.Node, str] = {}
    counts: Counter[str] = Counter()
    lines = []
    for node in module.graph.nodes:
        if node.op == "get_attr" and not node.users:
            continue
        name = _name(node)
        counts[name] += 1
        labels[node] = name if counts[name] == 1 else f"{name}#{counts[name]}"
        arguments = [_text(argument, labels) for argument in node.args]
        arguments += [f"{key}={_text(value, labels)}" for key, value in sorted(node.kwargs.items())]
        target = "" if node.op in ("placeholder", "output") else f" {node.target}"
        lines.append(f"{labels[node]}: {node.op}{target}({', '.join(arguments)}){_shape(node)}{_site(node)}")
    return "\n".join(lines) + "\n"


def _name(node: fx.Node) -> str:
    if node.op == "call_function":
        return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else "function"
    return str(node.target)


def _text(value: Any, labels: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return f"%{labels[value]}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_text(part, labels) for part in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(part, labels)}' for key, part in value.items())}}}"
    return repr(value)


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    sizes = ", ".join(str(size) if isinstance(size, int) else "N" for size in value.shape)
    return f" -> ({sizes})"


def _site(node: fx.Node) -> str:
    site = node.meta.get("site")
    if not isinstance(site, Site):
        return ""
    return f" [{site.name} {site.kind} {site.comparisons}{' fixed' if not site.gateable else ''}]"


def differences(expected: str, found: str) -> list[str]:
    """Every node that is missing, extra, changed or moved, in words; empty for equal graphs."""
    left, right = _nodes(expected), _nodes(found)
    result = [f"missing: {left[label]}" for label in left if label not in right]
    result += [f"extra: {right[label]}" for label in right if label not in left]
    both = [label for label in left if label in right]
    result += [f"changed: {left[la]}\n     to: {right[la]}" for la in both if left[la] != right[la]]
    order = [label for label in right if label in left]
    if order != both:
        result.append(f"moved: {both}\n   to: {order}")
    return result


def _nodes(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip()]
    nodes = {line.partition(": ")[0]: line for line in lines}
    if len(nodes) != len(lines):
        raise ValueError("Two lines of a graph have one label.")
    return nodes


def assert_golden(module: fx.GraphModule, name: str) -> None:
    """Compare with ``golden/name.txt``; with the variable set, write that file and skip."""
    path, text = FOLDER / f"{name}.txt", graph_text(module)
    if os.environ.get(VARIABLE):
        path.write_text(text, encoding="utf-8")
        pytest.skip(f"{path.name} was written; review it and unset {VARIABLE}")
    found = differences(path.read_text(encoding="utf-8"), text)
    if found:
        listed = "\n".join(found)
        pytest.fail(f"The graph is not that of {path.name}:\n{listed}\nIf it should change, set {VARIABLE}=1.")
