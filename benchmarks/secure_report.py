"""Rows of `secure.py` and `secure_link.py`: kept as they come, and written out as one table."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autorep_fx.runtime.secure.threads import limit_threads

__all__ = ["RESULTS", "conditions", "have", "keep", "limited", "rows_of", "write_table"]

RESULTS = Path(__file__).parent / "results"
_FILE = "secure.jsonl"
_KEY = ("model", "form", "protocol", "link")
_PACKAGES = ("spu", "jax", "torch", "onnx", "numpy")
#: Most of the stock form's bytes that a compiled ResNet-18 may send in a later query.
TARGETS = {"semi2k": 1 / 8, "aby3": 0.55, "cheetah": 1 / 1.3}


def limited() -> None:
    """Start this script anew with the threads that `autorep-fx secure` has: OpenMP has read them when torch came."""
    before = os.environ.get("OMP_THREAD_LIMIT")
    limit_threads()
    if os.environ.get("OMP_THREAD_LIMIT") != before:
        os.execv(sys.executable, [sys.executable, *sys.argv])


def conditions() -> dict[str, Any]:
    """Versions and hardware."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "versions": {name: version(name) for name in _PACKAGES},
        "threads_per_product": os.environ.get("OMP_THREAD_LIMIT", "2"),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The last row of every key, in the order of the models and protocols."""
    path = folder / _FILE
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        row = json.loads(line)
        found[tuple(row[name] for name in _KEY)] = row
    order = [*TARGETS]
    return sorted(found.values(), key=lambda row: (row["model"], order.index(row["protocol"]), row["link"] != "memory"))


def have(folder: Path, key: Mapping[str, str]) -> bool:
    """Whether there is a row."""
    return any(all(row[name] == key[name] for name in _KEY) for row in rows_of(folder))


def keep(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row; what had its key is replaced."""
    key = {name: row[name] for name in _KEY}
    rows = [other for other in rows_of(folder) if any(other[name] != key[name] for name in _KEY)]
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(other) + "\n" for other in [*rows, row])
    temporary = folder / f"{_FILE}.new"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / _FILE)


def write_table(folder: Path) -> str:
    """Write `secure.md`, and return it."""
    rows = rows_of(folder)
    simulated = [row for row in rows if row["link"] == "memory"]
    linked = [row for row in rows if row["link"] != "memory"]
    lines = ["# Secure inference of compiled models against stock", "", *_simulated(simulated)]
    lines += ["", *_linked(linked)] if linked else []
    lines += ["", *_not_run(simulated), *_stated(rows)]
    text = "\n".join(lines) + "\n"
    (folder / "secure.md").write_text(text, encoding="utf-8")
    return text


_SIMULATED = """All parties in one process, one sample a query. Bytes and messages are the engine's counters over all
parties. `stock` is the model's ReLU export as the engine runs it unchanged; `relu` the same in a session of this
package; the others are compiled without data. Weights are random: the shares of kept elements and of those replaced by
quadratics and by straight lines are stated, accuracy is not measured here. Predictions are those of the query that is
reported, measured minus predicted. `bytes once` is the set-up and what the first query sends more than later ones.
Products of matrices have one thread each (`OMP_THREAD_LIMIT=1`), stock's too, as `autorep-fx secure` sets it on fewer
than 12 cores. Beside the seconds: how many queries, and how many processes wanted to run on the machine, these among
them; seconds at different loads do not compare."""

_COLUMNS = (
    "model", "protocol", "form", "% kept / quadratic / linear", "comparisons", "bytes a query", "of stock",
    "predicted", "messages", "predicted", "bytes once", "seconds (median; n, load)", "largest error",
)  # fmt: skip


def _simulated(rows: list[dict[str, Any]]) -> list[str]:
    lines = [*_SIMULATED.splitlines(), "", *_header(_COLUMNS)]
    stock = {_pair(row): row["bytes"] for row in rows if row["form"] == "stock"}
    for row in rows:
        told, messages = row["predicted"], row["messages"]
        cells = [
            row["model"], row["protocol"], row["form"], _shares(row["elements"]), f"{row['comparisons']:,}",
            f"{row['bytes']:,}", _ratio(row, stock.get(_pair(row))),
            _difference(told["bytes"], row["bytes"]), f"{messages:,}", _difference(told["messages"], messages),
            f"{row['setup_bytes'] + row['first_query_bytes'] - row['bytes']:,}", _seconds(row),
            f"{row['max_error']:.1g}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _header(columns: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def _seconds(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']:.2f} ({row['n']}, {row['load']:.0f})"


def _shares(elements: Mapping[str, int]) -> str:
    whole = sum(elements.values())
    return " / ".join(f"{100 * elements[name] / whole:.1f}" for name in ("kept", "quadratic", "linear"))


def _ratio(row: Mapping[str, Any], stock: int | None) -> str:
    if stock is None:
        return "–"
    share = row["bytes"] / stock
    text = f"{share:.3f} (1/{1 / share:.2f})"
    if row["model"] == "resnet18" and row["form"] not in ("stock", "relu"):
        target = TARGETS[row["protocol"]]
        text += f", asked {target:.3f}: {'met' if share <= target else 'missed'}"
    return text


def _difference(predicted: int | None, measured: int) -> str:
    if predicted is None:
        return "–"
    return "exact" if predicted == measured else f"{measured - predicted:+,}"


_LINKED = """## Real parties on this machine, by link

One process per party over mutual TLS. `loopback` is the machine's own; the others go through `link_proxy.py`, which
shapes each direction of each connection. Seconds are the slowest party's execution of a later query. `half` is compiled
to the same budget with quadratics, and keeps its elements at every second site alone."""


def _linked(rows: list[dict[str, Any]]) -> list[str]:
    columns = ("model", "protocol", "form", "link", "seconds (median; n, load)", "messages of the busiest party")
    return [*_LINKED.splitlines(), "", *_header(columns)] + [
        f"| {row['model']} | {row['protocol']} | {row['form']} | {row['link']} | {_seconds(row)} | "
        f"{row['messages_of_one']:,} |"
        for row in rows
    ]


def _not_run(rows: list[dict[str, Any]]) -> list[str]:
    models = sorted({row["model"] for row in rows})
    missing = [f"{m} under {p}" for m in models for p in TARGETS if (m, p) not in {_pair(row) for row in rows}]
    return [f"Not run: {', '.join(missing)}.", ""] if missing else []


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["model"], row["protocol"]


def _stated(rows: list[dict[str, Any]]) -> list[str]:
    versions = {json.dumps(row["versions"], sort_keys=True): row["versions"] for row in rows}
    texts = [", ".join(f"{name} {number}" for name, number in found.items()) for found in versions.values()]
    hardware = sorted({row["hardware"] for row in rows})
    older = sorted({f"{row['model']} under {row['protocol']}" for row in rows if "threads_per_product" not in row})
    wider = [f"Rows of {', '.join(older)} in part with two threads a product."] if older else []
    return [f"{'; '.join(hardware)}; some rows over links with other work on it. {'; '.join(texts)}.", *wider]
