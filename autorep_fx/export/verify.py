"""Verify an exported file: parity with torch at several batch sizes, the optimiser off and on, and a recount.

Needs no torch: what torch computed is stored in the file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from autorep_fx.cost.metadata import METADATA, exported_metadata
from autorep_fx.cost.onnx_count import count_onnx, load_model
from autorep_fx.errors import ModelFileError, ParityError
from autorep_fx.export.reference import SAMPLES, InputRecipe, ReferenceOutput, reference_inputs

__all__ = ["BATCHES", "TOLERANCE", "Verification", "verify"]

BATCHES = (1, 2, 3, SAMPLES)
#: Largest difference, relative to the largest output; float16 carries 11 bits.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}


@dataclass(frozen=True)
class Verification:
    """What was verified.

    Attributes:
        comparisons: Nominal comparisons counted in the graph, for one sample.
        largest_difference: Largest output difference to torch, relative to the largest output.
        batches: Batch sizes that were run, each with the optimiser off and on.
        sizes: Samples of other heights and widths that were run too, where these are free: the shapes of the inputs.
        budget: The budget in the file's metadata.
        plan_digest: Digest of the plan that the file was made from.
    """

    comparisons: int
    largest_difference: float
    batches: tuple[int, ...]
    budget: dict[str, float]
    plan_digest: str
    sizes: tuple[tuple[tuple[int, ...], ...], ...] = ()


def verify(path: Path | str) -> Verification:
    """Repeat the parity check of an exported file, and recount its comparisons.

    Raises:
        ModelFileError: It is no valid ONNX file, or was not exported by autorep-fx.
        ParityError: Outputs differ, are not finite or are constant, or the count differs from the metadata.
    """
    model = load_model(path)
    metadata = _metadata(model, path)
    counted = sum(count.comparisons for count in count_onnx(model))
    stated = int(metadata["comparisons"])
    problems = []
    if counted != stated:
        problems.append(f"the graph has {counted:,} comparisons, its metadata say {stated:,}")
    parity = json.loads(metadata["parity"])
    cases = [_Case.from_json(case) for case in (parity, *parity.get("other_sizes", ()))]
    batches = BATCHES if "batch" not in metadata else (int(metadata["batch"]),)
    worst, found = _parity(Path(path), cases, batches, TOLERANCE[metadata.get("dtype", "float32")])
    problems += found
    if problems:
        raise ParityError(
            f"{path} failed its verification:\n" + "\n".join(f"  {text}" for text in problems),
            fix="Export it again; if it fails again, this is a defect of the exporter or the runtime: report it.",
        )
    sizes = tuple(tuple(recipe.shape for recipe in case.recipes) for case in cases[1:])
    return Verification(counted, worst, batches, json.loads(metadata["budget"]), metadata["plan_digest"], sizes)


@dataclass(frozen=True)
class _Case:
    """Reference inputs of one size, and the outputs that torch gave for them."""

    recipes: list[InputRecipe]
    references: list[ReferenceOutput]

    @classmethod
    def from_json(cls, value: Any) -> _Case:
        recipes = [InputRecipe(**{**item, "shape": tuple(item["shape"])}) for item in value["inputs"]]
        return cls(recipes, [ReferenceOutput.from_json(item) for item in value["outputs"]])


def _metadata(model: onnx.ModelProto, path: Path | str) -> dict[str, str]:
    found = exported_metadata(model)
    missing = [key for key in ("comparisons", "budget", "plan_digest", "parity") if key not in found]
    if missing:
        raise ModelFileError(
            f"{path} does not carry what a verification needs.",
            received=f"no metadata {', '.join(METADATA + key for key in missing)}",
            fix="Pass a file that Compiled.export() wrote; use `autorep-fx count` for any other.",
        )
    return found


def _parity(path: Path, cases: Sequence[_Case], batches: Sequence[int], tolerance: float) -> tuple[float, list[str]]:
    worst, problems = 0.0, []
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        session = None  # the one before goes first: each has all the weights
        try:
            session = _session(path, level)
        except Exception as error:  # an operator that it lacks for a type, for example
            problems.append(f"onnxruntime cannot load it: {error}")
            continue
        for case, batch in itertools.product(cases, batches):
            where = f"at batch {batch}" + ("" if case is cases[0] else f" of {_shapes(case.recipes)}")
            where += f" with the optimiser {'off' if 'DISABLE' in str(level) else 'on'}"
            samples = max(batches)
            try:
                outputs = session.run(None, reference_inputs(case.recipes, batch, samples))
            except Exception as error:  # onnxruntime raises many types; each is a failed parity
                problems.append(f"{where} onnxruntime failed: {error}")
                continue
            difference, text = _compare(outputs, case.references, batch, samples)
            worst = max(worst, difference)
            problems += [f"{where} {t}" for t in text]
            if not difference <= tolerance:
                problems.append(f"{where} outputs differ by {difference:.3g} (allowed: {tolerance:.3g})")
    return worst, problems


def _shapes(recipes: Sequence[InputRecipe]) -> str:
    return ", ".join("×".join(map(str, recipe.shape)) for recipe in recipes)


def _session(path: Path, level: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _compare(
    outputs: list[Any], references: list[ReferenceOutput], batch: int, samples: int
) -> tuple[float, list[str]]:
    worst, problems = 0.0, []
    constant: list[str] = []  # one of several may be; a network of which nothing else is left computes nothing
    if len(outputs) != len(references):
        return float("inf"), [f"there are {len(outputs)} outputs, torch gave {len(references)}"]
    for index, (output, reference) in enumerate(zip(outputs, references, strict=True)):
        if output.shape != (batch, *reference.shape):
            problems.append(f"output {index} has shape {output.shape}, torch gave {(batch, *reference.shape)}")
            continue
        values = output.reshape(batch, -1).astype(np.float64)
        if not np.isfinite(values).all():
            problems.append(f"output {index} is not finite")
        elif batch == samples and values.size > 1 and np.ptp(values) == 0 and output.dtype.kind == "f":
            constant.append(f"output {index} is constant ({values.flat[0]:.6g})")
        difference = np.abs(values[:, reference.positions] - reference.values[:batch]).max()
        worst = max(worst, float(difference) / max(reference.scale, 1e-30))
    if len(constant) == sum(output.dtype.kind == "f" for output in outputs):
        problems += constant
    return worst, problems
