"""The plan: per site, which units are kept and which polynomials replace the others.

A plan is ``plan.json`` (readable) beside ``plan.safetensors`` (masks and coefficients). It needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from autorep_fx.budget import Budget
from autorep_fx.errors import AutorepError, PlanError
from autorep_fx.files import atomic_path, write_text

__all__ = ["FORMAT_VERSION", "FixedSite", "Plan", "SitePlan", "check_files"]

#: Raised by one with every change that an older reader would misread.
FORMAT_VERSION = 1
_ARRAYS = "plan.safetensors"


@dataclass(frozen=True)
class SitePlan:
    """What happens at one gated site.

    Attributes:
        name: Site name.
        kind: Activation kind.
        shape: Output shape for one sample.
        granularity: What one gate decides on.
        degree: Degree of the polynomials, as asked for.
        comparisons_per_element: Nominal comparisons per kept element.
        kept: Units kept; broadcasts to ``shape``.
        coefficients: ``(degree + 1, C)``, lowest power first.
        input_range: Smallest and largest input seen in calibration, if recorded.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    granularity: str
    degree: int
    comparisons_per_element: int
    kept: npt.NDArray[np.bool_]
    coefficients: npt.NDArray[np.float64]
    input_range: tuple[float, float] | None = None

    @property
    def elements(self) -> int:
        """Elements of the site's output for one sample."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def kept_elements(self) -> int:
        """Elements that stay the activation."""
        return int(self.kept.sum()) * (self.elements // self.kept.size)

    @property
    def fitted_degree(self) -> int:
        """Highest power that any channel uses: less than ``degree`` where calibration fell back to straight lines."""
        used = np.flatnonzero(np.any(self.coefficients != 0, axis=1))
        return int(used[-1]) if len(used) else 0

    @property
    def comparisons(self) -> int:
        """Nominal comparisons that stay, for one sample."""
        return self.kept_elements * self.comparisons_per_element

    def header(self) -> dict[str, Any]:
        """The readable part."""
        return {
            "name": self.name, "kind": self.kind, "shape": list(self.shape), "granularity": self.granularity,
            "degree": self.degree, "comparisons_per_element": self.comparisons_per_element,
            "elements": self.elements, "kept_elements": self.kept_elements, "comparisons": self.comparisons,
            "input_range": None if self.input_range is None else list(self.input_range),
        }  # fmt: skip


@dataclass(frozen=True)
class FixedSite:
    """A site that compares and has no gate.

    Attributes:
        name: Site name.
        kind: Activation kind or operation.
        comparisons: Nominal comparisons for one sample.
        reason: Why it is fixed.
    """

    name: str
    kind: str
    comparisons: int
    reason: str


@dataclass(frozen=True, repr=False)
class Plan:
    """The outcome of a transformation, to be applied to a fresh model of the same graph.

    Attributes:
        budget: What was asked for.
        allowed: Gateable comparisons that the budget allows, for one sample.
        sites: Gated sites in execution order.
        fixed: Fixed sites in execution order.
        fingerprint: Digest of the canonical graph.
        calibrated_on: What the polynomials were first fitted on.
        notes: What the compiler did of its own accord.
    """

    budget: Budget
    allowed: int
    sites: tuple[SitePlan, ...]
    fixed: tuple[FixedSite, ...]
    fingerprint: str
    calibrated_on: str = ""
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        lines = [f"Plan for {self.budget}: {self.original_comparisons:,} → {self.comparisons:,} comparisons"]
        lines += [
            f"  {s.name}: {s.kept_elements:,} of {s.elements:,} elements kept, degree {s.fitted_degree}"
            for s in self.sites
        ]
        return "\n".join(lines + [f"  {s.name}: fixed, {s.comparisons:,} comparisons" for s in self.fixed])

    @property
    def comparisons(self) -> int:
        """Nominal comparisons of the compiled model for one sample, fixed ones included."""
        return sum(site.comparisons for site in self.sites) + self.fixed_comparisons

    @property
    def fixed_comparisons(self) -> int:
        """Nominal comparisons without a gate."""
        return sum(site.comparisons for site in self.fixed)

    @property
    def original_comparisons(self) -> int:
        """Nominal comparisons before, for one sample."""
        return sum(s.elements * s.comparisons_per_element for s in self.sites) + self.fixed_comparisons

    @property
    def unspent(self) -> int:
        """Allowed comparisons that no selection could spend."""
        return self.allowed - sum(site.comparisons for site in self.sites)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the compiled model's activations."""
        content = self._header()
        content.pop("notes")
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        digest.update(save_arrays(self._arrays()))
        return digest.hexdigest()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for site in self.sites:
            arrays[f"{site.name}.kept"] = np.ascontiguousarray(site.kept, dtype=np.uint8)
            arrays[f"{site.name}.coefficients"] = np.ascontiguousarray(site.coefficients, dtype=np.float64)
        return arrays

    def _header(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "budget": self.budget.to_json(),
            "allowed": self.allowed,
            "comparisons": self.comparisons,
            "original_comparisons": self.original_comparisons,
            "unspent": self.unspent,
            "fingerprint": self.fingerprint,
            "calibrated_on": self.calibrated_on,
            "sites": [site.header() for site in self.sites],
            "fixed": [vars(site) for site in self.fixed],
            "notes": list(self.notes),
        }

    def save(self, folder: Path | str, *, beside: Sequence[str] = ()) -> Path:
        """Write ``plan.safetensors`` and ``plan.json`` into an existing folder; returns the path of the JSON.

        Args:
            folder: The folder.
            beside: Names of files in it that belong to the plan; their digests go into the JSON.

        Raises:
            OutputError: They cannot be written.
        """
        folder = Path(folder)
        arrays = save_arrays(self._arrays())
        with atomic_path(folder / _ARRAYS) as temporary:
            temporary.write_bytes(arrays)
        header = {
            **self._header(),
            "arrays": {"file": _ARRAYS, "sha256": hashlib.sha256(arrays).hexdigest()},
            "files": {name: _sha256(folder / name) for name in beside},
        }
        return write_text(folder / "plan.json", json.dumps(header, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Plan:
        """Read a plan from the folder it was saved in.

        Raises:
            PlanError: It is missing, damaged, or of a newer format.
        """
        path = Path(folder) / "plan.json"
        try:
            return cls._read(path)
        except AutorepError as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"{path} is not a valid plan.", received=str(error), fix=_FIX) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise PlanError(
                f"{path} is not a valid plan.", received=f"{type(error).__name__}: {error}", fix=_FIX
            ) from error

    @classmethod
    def _read(cls, path: Path) -> Plan:
        header = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(header, Mapping) or "format_version" not in header:
            raise PlanError(f"{path} is not a plan of autorep-fx.", received="no format_version", fix=_FIX)
        version = header["format_version"]
        if version > FORMAT_VERSION:
            raise PlanError(
                f"{path} is of a newer format than this release reads.",
                received=f"format {version}; this release reads up to {FORMAT_VERSION}",
                fix="Install a newer autorep-fx.",
            )
        content = (path.parent / header["arrays"]["file"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != header["arrays"]["sha256"]:
            raise PlanError(
                f"The arrays beside {path} are not those of this plan.", received="another digest", fix=_FIX
            )
        arrays = load_arrays(content)
        return cls(
            Budget.parse(header["budget"]), header["allowed"],
            tuple(_site(site, arrays) for site in header["sites"]),
            tuple(FixedSite(**site) for site in header["fixed"]),
            header["fingerprint"], header["calibrated_on"], tuple(header["notes"]),
        )  # fmt: skip


def check_files(folder: Path | str) -> None:
    """Check that the files beside a plan are those that were saved with it; what is missing is told by who needs it.

    Raises:
        PlanError: One is damaged, or of another result.
    """
    path = Path(folder) / "plan.json"
    stated = json.loads(path.read_text(encoding="utf-8")).get("files", {})  # the first release stated none
    present = {name: path.parent / name for name in stated if (path.parent / name).is_file()}
    wrong = [name for name, file in present.items() if _sha256(file) != stated[name]]
    if wrong:
        raise PlanError(
            f"Files beside {path} are not those that were saved with it.",
            received=f"{', '.join(wrong)}: damaged, or of another result",
            fix=_FIX,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FIX = "Pass a folder that Compiled.save() wrote, complete with plan.json and plan.safetensors."


def _site(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> SitePlan:
    name = header["name"]
    span = header["input_range"]
    return SitePlan(
        name, header["kind"], tuple(header["shape"]), header["granularity"], header["degree"],
        header["comparisons_per_element"], arrays[f"{name}.kept"].astype(bool),
        arrays[f"{name}.coefficients"].astype(np.float64), None if span is None else (span[0], span[1]),
    )  # fmt: skip
