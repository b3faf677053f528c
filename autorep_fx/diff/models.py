"""Two ONNX models: operators, comparisons by site, products."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from autorep_fx.cost.metadata import exported_metadata
from autorep_fx.cost.onnx_count import count_onnx, load_model
from autorep_fx.cost.onnx_products import count_products
from autorep_fx.errors import ModelFileError

__all__ = ["ModelDiff", "diff_models"]


@dataclass(frozen=True)
class ModelDiff:
    """Two ONNX models; every pair is ``(before, after)``.

    Attributes:
        comparisons: Nominal comparisons counted in the graph, for one sample; None where they cannot be counted.
        multiplications: Products of two values that both depend on the input, for one sample; None where they are not
            known.
        operators: Nodes by operator, of either model.
        sites: Comparisons by site as the files say, or by node where a file says nothing; None where a model has no
            such site or node.
        by_site: Whether ``sites`` are sites.
        inputs: Inputs with type and shape.
        outputs: Outputs with type and shape.
        opset: Version of the standard operators.
        bytes: Size of the files, without external data.
    """

    comparisons: tuple[int | None, int | None]
    multiplications: tuple[int | None, int | None]
    operators: dict[str, tuple[int, int]]
    sites: dict[str, tuple[int | None, int | None]]
    by_site: bool
    inputs: tuple[list[str], list[str]]
    outputs: tuple[list[str], list[str]]
    opset: tuple[int, int]
    bytes: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {"kind": "models", **asdict(self)}


@dataclass(frozen=True)
class _Side:
    model: onnx.ModelProto
    counts: dict[str, int] | None
    by_site: dict[str, int] | None


def diff_models(before: Path | str, after: Path | str) -> ModelDiff:
    """Compare two ONNX files; they need not be of the same network, nor made by autorep-fx.

    Raises:
        ModelFileError: A file is missing or not valid.
    """
    a, b = (_read(Path(path)) for path in (before, after))
    by_site = a.by_site is not None and b.by_site is not None
    left, right = (side.by_site if by_site else side.counts for side in (a, b))
    names = dict.fromkeys([*(left or {}), *(right or {})])
    operators = [Counter(node.op_type for node in side.model.graph.node) for side in (a, b)]
    return ModelDiff(
        (_total(a.counts), _total(b.counts)), (count_products(a.model), count_products(b.model)),
        {name: (operators[0][name], operators[1][name]) for name in sorted({*operators[0], *operators[1]})},
        {name: ((left or {}).get(name), (right or {}).get(name)) for name in names}, by_site,
        (_values(a.model.graph.input), _values(b.model.graph.input)),
        (_values(a.model.graph.output), _values(b.model.graph.output)),
        (_opset(a.model), _opset(b.model)), (Path(before).stat().st_size, Path(after).stat().st_size),
    )  # fmt: skip


def _read(path: Path) -> _Side:
    model = load_model(path)
    stated = exported_metadata(model).get("comparisons_by_site")
    return _Side(model, _counts(model), None if stated is None else json.loads(stated))


def _counts(model: onnx.ModelProto) -> dict[str, int] | None:
    """Comparisons by node; None where a shape is not known, or there is control flow."""
    counts: Counter[str] = Counter()
    try:
        for found in count_onnx(model):
            counts[found.name] += found.comparisons
    except ModelFileError:
        return None
    return dict(counts)


def _total(counts: dict[str, int] | None) -> int | None:
    return None if counts is None else sum(counts.values())


def _opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _values(values: Any) -> list[str]:
    """``x: float32 (batch, 3, 32, 32)`` of each."""
    result = []
    for value in values:
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        sizes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
        result.append(f"{value.name}: {'float32' if kind == 'float' else kind} ({', '.join(sizes)})")
    return result
