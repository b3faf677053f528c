"""What an exported file was made for."""

from __future__ import annotations

import onnx

from autorep_fx.errors import ModelFileError

__all__ = ["require_any_engine"]

_KEY = "autorep_fx.target"


def require_any_engine(model: onnx.ModelProto) -> None:
    """Refuse a file that was made for onnxruntime alone: it has numbers that fixed point cannot hold.

    Raises:
        ModelFileError: It was.
    """
    target = next((entry.value for entry in model.metadata_props if entry.key == _KEY), "any")
    if target != "any":
        raise ModelFileError(
            "The file was made for onnxruntime, in a form that computes something else in fixed point.",
            received=f"export.target {target}",
            fix='Write one for any engine: compiled.export(path, target="any"), or export: {target: any}.',
        )
