"""Reference inputs and outputs inside an exported file, so that the file alone is enough to repeat its parity check.

Needs no torch.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["InputRecipe", "ReferenceOutput", "pack_outputs", "reference_inputs"]

#: Samples in the reference; the largest batch that parity is checked at.
SAMPLES = 7
# Numbers stored per output and sample: enough to see any wrong result, small enough for segmentation maps.
_STORED = 4096


@dataclass(frozen=True)
class InputRecipe:
    """How to make the reference values of one input.

    Attributes:
        name: Input name in the graph.
        shape: Shape of one sample.
        dtype: NumPy dtype name.
        mean: Mean of the example input.
        std: Standard deviation of the example input.
        low: Its smallest value.
        high: Its largest value.
        batched: Whether axis 0 is the batch.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    low: float
    high: float
    batched: bool = True

    @classmethod
    def of(cls, name: str, example: npt.NDArray[Any], *, batched: bool) -> InputRecipe:
        """The recipe that imitates ``example``."""
        values = example.astype(np.float64)
        return cls(
            name, tuple(example.shape[1:] if batched else example.shape), str(example.dtype), float(values.mean()),
            float(values.std()) or 1.0, float(values.min()), float(values.max()), batched,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return asdict(self)


def reference_inputs(recipes: Sequence[InputRecipe], batch: int, samples: int = SAMPLES) -> dict[str, npt.NDArray[Any]]:
    """Values for all inputs: the first ``batch`` of ``samples`` samples.

    The generator is NumPy's legacy one, whose stream never changes between versions.
    """
    result = {}
    for index, recipe in enumerate(recipes):
        random = np.random.RandomState(index)
        shape = (samples, *recipe.shape) if recipe.batched else recipe.shape
        if np.issubdtype(np.dtype(recipe.dtype), np.floating):
            made: npt.NDArray[Any] = recipe.mean + recipe.std * random.standard_normal(shape)
        else:
            made = random.randint(int(recipe.low), int(recipe.high) + 1, shape)
        values = np.asarray(made).astype(recipe.dtype)
        result[recipe.name] = values[:batch] if recipe.batched else values
    return result


@dataclass(frozen=True)
class ReferenceOutput:
    """What torch gave for one output.

    Attributes:
        shape: Shape of one sample.
        positions: Flat positions that are stored, for one sample.
        values: ``(samples, len(positions))``.
        scale: Largest absolute value of the whole output.
    """

    shape: tuple[int, ...]
    positions: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    scale: float

    def to_json(self) -> dict[str, Any]:
        """As a mapping; values as base64 of little-endian float32."""
        content = base64.b64encode(self.values.astype("<f4").tobytes()).decode()
        return {"shape": list(self.shape), "scale": self.scale, "values": content}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ReferenceOutput:
        """Read what :meth:`to_json` wrote."""
        shape = tuple(value["shape"])
        positions = _positions(math.prod(shape))
        numbers = np.frombuffer(base64.b64decode(value["values"]), dtype="<f4").reshape(-1, len(positions))
        return cls(shape, positions, numbers.astype(np.float32), value["scale"])


def pack_outputs(outputs: Sequence[npt.NDArray[Any]]) -> list[ReferenceOutput]:
    """References for outputs ``(samples, *shape)``."""
    result = []
    for output in outputs:
        flat = output.reshape(len(output), -1).astype(np.float32)
        positions = _positions(flat.shape[1])
        result.append(
            ReferenceOutput(tuple(output.shape[1:]), positions, flat[:, positions], float(np.abs(flat).max()))
        )
    return result


def _positions(elements: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, elements - 1, min(elements, _STORED)).astype(np.int64))
