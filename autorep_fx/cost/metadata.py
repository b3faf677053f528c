"""What an exported file says of itself."""

from __future__ import annotations

import onnx

from autorep_fx.errors import ModelFileError

__all__ = ["METADATA", "exported_metadata", "require_any_engine"]

#: Prefix of this project's keys in the metadata of an ONNX file.
METADATA = "autorep_fx."


def exported_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """This project's entries, by their keys without the prefix; none in a file of other origin."""
    return {p.key.removeprefix(METADATA): p.value for p in model.metadata_props if p.key.startswith(METADATA)}


def require_any_engine(model: onnx.ModelProto) -> None:
    """Refuse a file that was made for onnxruntime alone: it has numbers that fixed point cannot hold.

    Raises:
        ModelFileError: It was.
    """
    target = exported_metadata(model).get("target", "any")
    if target != "any":
        raise ModelFileError(
            "The file was made for onnxruntime, in a form that computes something else in fixed point.",
            received=f"export.target {target}",
            fix='Write one for any engine: compiled.export(path, target="any"), or export: {target: any}.',
        )
