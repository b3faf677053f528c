"""Which call of a module a node of an exported graph belongs to; a call of an activation is a site."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from autorep_fx.cost.metadata import exported_metadata
from autorep_fx.cost.onnx_count import load_model

__all__ = ["calls_of", "stated_sites"]

_MODEL = "(model)"
_NUMBER = re.compile(r"#\d+$")


def calls_of(names: Sequence[str], sites: Collection[str] = ()) -> list[str]:
    """The call that each node belongs to.

    1. A node is called after its module's path, ``layer1.0.relu/Mul``; neighbours with one path are one call.
    2. The second call of a module is ``layer1.0.relu#2``, as sites are called.
    3. Where the file lists other sites of a module than it has calls, they cannot be told apart: all are one.
    4. What the model computes outside of its modules is a call of ``(model)``. An activation that is called as a
       function belongs to the module that calls it.

    Args:
        names: Names of nodes in the order of the graph.
        sites: Names of sites as the file lists them; empty if it lists none.
    """
    paths = [name.rpartition("/")[0] or _MODEL for name in names]
    listed = Counter(_NUMBER.sub("", site) for site in sites)
    turns: Counter[str] = Counter()
    numbers = []
    for before, path in zip(["", *paths], paths, strict=False):
        turns[path] += path != before
        numbers.append(turns[path])
    return [
        path if number == 1 or listed[path] not in (0, turns[path]) else f"{path}#{number}"
        for path, number in zip(paths, numbers, strict=True)
    ]


def stated_sites(path: Path | str) -> tuple[str, ...]:
    """Names of the activation sites that an exported file lists, in order; none in a file of other origin.

    Raises:
        ModelFileError: The file is not valid.
    """
    return tuple(json.loads(exported_metadata(load_model(path)).get("comparisons_by_site", "{}")))
