"""Time by operator, from a profile that onnxruntime wrote."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autorep_fx.errors import DataError

__all__ = ["OUTSIDE", "OpTime", "read_profile"]

#: What a run takes beside its operators.
OUTSIDE = "(outside operators)"


@dataclass(frozen=True)
class OpTime:
    """What all nodes of one operator take together, in one run.

    Attributes:
        operator: The operator as onnxruntime runs it: fused ones have names of their own.
        nodes: Nodes of it.
        seconds: Seconds, the median over the runs.
    """

    operator: str
    nodes: int = 0
    seconds: float = 0.0


def read_profile(path: Path, runs: int) -> dict[str, OpTime]:
    """Time by operator over the last ``runs`` runs of a profile.

    Args:
        path: What :meth:`Session.end_profile` returned.
        runs: Runs to take; those before them warmed up.

    Raises:
        DataError: The profile has fewer runs.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")[-runs:]
    if len(spans) < runs:
        raise DataError("The profile has too few runs.", received=f"{len(spans)} of {runs}", fix="Run more often.")
    nodes = sorted((e for e in events if e.get("cat") == "Node"), key=lambda e: e["ts"])
    times: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * runs)
    counts: Counter[str] = Counter()
    for index, (start, end) in enumerate(spans):
        inside = [e for e in nodes if start <= e["ts"] < end and _is_kernel(e)]
        for event in inside:
            times[event["args"]["op_name"]][index] += event["dur"] / 1e6
            counts[event["args"]["op_name"]] += 1
        times[OUTSIDE][index] = (end - start - sum(event["dur"] for event in inside)) / 1e6
    return {name: OpTime(name, counts[name] // runs, statistics.median(found)) for name, found in times.items()}


def _is_kernel(event: dict[str, Any]) -> bool:
    """Other events of a node are the fences before and after it."""
    return str(event["name"]).endswith("_kernel_time") and "op_name" in event.get("args", {})
