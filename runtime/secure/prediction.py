"""What the cost model says of the queries of a session, to be held against what the engine sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autorep_fx.cost.onnx_count import load_model
from autorep_fx.cost.predict import predict
from autorep_fx.cost.primitives import secure_work
from autorep_fx.cost.profile import load_profile
from autorep_fx.runtime.secure.protocols import Settings

__all__ = ["predicted_bytes"]


def predicted_bytes(path: Path | str, batches: Sequence[int], settings: Settings) -> tuple[int | None, str]:
    """Bytes of all queries of a session, over all parties; the first query opens the weights.

    Args:
        path: The ONNX file.
        batches: Samples of each query.
        settings: Protocol settings.

    Returns:
        The bytes, or None and the reason.

    Raises:
        ModelFileError: The file is not valid.
    """
    profile = load_profile()
    if settings.protocol not in profile.protocols or settings.ring_bits != profile.fixed_point.ring_bits:
        return None, f"predicted_bytes is null: {profile.name} has no {settings.protocol} of {settings.ring_bits} bits"
    model, costs = load_model(path), profile.protocol(settings.protocol)
    found = {
        batch: predict(
            secure_work(model, batch, protocol=settings.protocol, ring_bits=settings.ring_bits),
            settings.protocol, costs,
        )
        for batch in set(batches)
    }  # fmt: skip
    first = found[batches[0]]
    if first.bytes is None:
        return None, f"predicted_bytes is null: {profile.name} has no cost of {', '.join(first.unknown)}"
    opened = first.setup_bytes - costs.setup_bytes
    return opened + sum(found[batch].bytes or 0 for batch in batches), ""
