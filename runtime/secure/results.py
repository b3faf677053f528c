"""What a secure run reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from autorep_fx.errors import SecureProgramError
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.profile import Counters
from autorep_fx.runtime.secure.protocols import Settings

if TYPE_CHECKING:
    from autorep_fx.runtime.secure.node_profile import RunProfile

__all__ = ["SecureRun", "Step", "comparisons_of"]


@dataclass(frozen=True)
class Step:
    """One step of a session: its set-up, or a query.

    Attributes:
        counters: The engine's counters, summed over all ranks.
        seconds: Seconds of execution, at the slowest party.
        compile_seconds: Seconds of compilation; 0 for a program that was compiled before.
        comparisons: Comparisons that were executed.
        share_bytes: Bytes of shares of weights, inputs and outputs that travel between parties, with their framing.
    """

    counters: Counters
    seconds: float
    compile_seconds: float
    comparisons: int
    share_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return {
            "comparisons": self.comparisons, "bytes": self.counters.bytes, "messages": self.counters.messages,
            "share_bytes": self.share_bytes, "seconds": self.seconds, "compile_seconds": self.compile_seconds,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        """Read what :meth:`to_json` wrote, whose operations are elsewhere."""
        return cls(
            Counters(int(value["bytes"]), int(value["messages"])), float(value["seconds"]),
            float(value["compile_seconds"]), int(value["comparisons"]), int(value["share_bytes"]),
        )  # fmt: skip


@dataclass
class SecureRun:
    """A session: its set-up, its queries and their outputs.

    Attributes:
        mode: ``plain``, ``simulate`` or ``execute``.
        settings: Protocol settings; None in the clear.
        samples: Samples in all queries together.
        outputs: All outputs, the queries one after the other.
        setup: What is paid once; None where nothing is.
        queries: What each query paid.
        leaks: What the public program tells everyone.
        by_rank: Bytes and messages that each rank sent in all queries; empty where ranks share one log.
        predicted_bytes: What the cost model says of all queries, over all parties; None where it does not know.
        max_error: Largest absolute difference to onnxruntime; None where the model is not there to compare with.
        notes: What the figures are to be read with.
        profile: What each operation cost; None where the run was not cut into operations.
    """

    mode: str
    settings: Settings | None
    samples: int
    outputs: tuple[Array, ...]
    setup: Step | None
    queries: list[Step]
    leaks: tuple[str, ...]
    by_rank: list[dict[str, int]] = field(default_factory=list)
    predicted_bytes: int | None = None
    max_error: float | None = None
    notes: list[str] = field(default_factory=list)
    profile: RunProfile | None = None

    def compare(self, reference: Sequence[Array]) -> None:
        """Set ``max_error`` against the outputs of the model in the clear."""
        pairs = zip(self.outputs, reference, strict=True)
        self.max_error = max(float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) for a, b in pairs)

    def to_json(self) -> dict[str, Any]:
        """As a mapping: totals of all queries, then the set-up and each query, then what they mean."""
        secure = self.settings is not None
        counters = sum((step.counters for step in self.queries), Counters())
        return {
            "mode": self.mode,
            "samples": self.samples,
            "comparisons": sum(step.comparisons for step in self.queries),
            "predicted_bytes": self.predicted_bytes,
            "measured_bytes": counters.bytes if secure else None,
            "messages": counters.messages if secure else None,
            "seconds": sum(step.seconds for step in self.queries),
            "compile_seconds": sum(s.compile_seconds for s in (*self.queries, *([self.setup] if self.setup else []))),
            "max_error": self.max_error,
            "setup": self.setup.to_json() if self.setup else None,
            "queries": [step.to_json() for step in self.queries],
            "by_rank": self.by_rank,
            "operations": counters.to_json()["operations"],
            "settings": self.settings.to_json() if self.settings else None,
            "threat_model": self.settings.of.to_json() if self.settings else None,
            "leaks": list(self.leaks),
            "notes": list(self.notes),
        }


def comparisons_of(counters: Counters, settings: Settings, compiled: int) -> int:
    """Comparisons that were executed: by the engine's bytes where these are exact, else as compiled.

    Raises:
        SecureProgramError: The bytes are not those of the comparisons that were compiled.
    """
    each = settings.comparison_bytes
    if each is None:
        return compiled
    kernel = counters.kernels.get(settings.of.compares)
    sent = kernel.bytes if kernel else 0
    if sent != each * compiled:
        raise SecureProgramError(
            "The engine did not compare what the program says.",
            received=f"{sent:,} bytes in {settings.of.compares}; {compiled:,} comparisons have {each * compiled:,}",
            fix="This is a defect of the program's operators, or another engine: report it with the model.",
        )
    return compiled
