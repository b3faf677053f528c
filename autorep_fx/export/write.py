"""Write an ONNX model without a second copy of its weights in memory: in one file, or with the weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import onnx
import onnx_ir as ir

__all__ = ["DATA_SUFFIX", "write_model"]

#: Weights beside ``model.onnx`` are in ``model.onnx.data``.
DATA_SUFFIX = ".data"
# Bytes of weights above which they go beside: a protobuf message ends at 2 GiB, and the graph needs some room too.
_EXTERNAL_ABOVE = 2**31 - 2**27
# Tensors above this size are written one by one, or beside; smaller ones, which shapes may depend on, are not.
_LARGE = 2**16
# Tags of the protobuf wire format, (field number << 3) | 2, of ModelProto.graph, GraphProto.initializer and
# TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def write_model(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``, and its weights beside it where one file cannot hold them.

    Args:
        model: The model; it loses its large weights.
        path: Target file.
    """
    large = [value for value in model.graph.initializers.values() if _size(value) > _LARGE]
    if sum(_size(value) for value in large) > _EXTERNAL_ABOVE:
        ir.save(model, path, external_data=path.name + DATA_SUFFIX, size_threshold_bytes=_LARGE)
        return
    for value in large:
        model.graph.initializers.pop(str(value.name))
    _write_file(ir.to_proto(model), large, path)


def _size(value: ir.Value) -> int:
    tensor = value.const_value
    return 0 if tensor is None or tensor.dtype == ir.DataType.STRING else int(tensor.nbytes)


def _write_file(proto: onnx.ModelProto, large: list[ir.Value], path: Path) -> None:
    """One ONNX file of a model and of initializers that it lacks.

    A message that is serialised as a whole is twice in memory. Its parts may be in any order, and their lengths
    are known before they are written.
    """
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_head(value) for value in large]
    length = len(graph) + sum(len(head) + _size(value) for head, value in zip(heads, large, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _GRAPH + _varint(length) + graph)
        for head, value in zip(heads, large, strict=True):
            file.write(head)
            _write_tensor(value.const_value, file)


def _head(value: ir.Value) -> bytes:
    """What is before the bytes of an initializer."""
    tensor: Any = value.const_value
    proto = onnx.TensorProto(name=value.name, dims=[int(size) for size in tensor.shape], data_type=int(tensor.dtype))
    inner: bytes = proto.SerializeToString() + _RAW_DATA + _varint(_size(value))
    return _INITIALIZER + _varint(len(inner) + _size(value)) + inner


def _write_tensor(tensor: Any, file: IO[bytes]) -> None:
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have their highest bit set."""
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)
