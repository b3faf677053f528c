"""Requests and answers: JSON, or one array in NumPy's file format."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["NPY", "PayloadError", "Prediction", "from_json", "from_npy", "to_npy"]

NPY = "application/x-npy"


class PayloadError(ValueError):
    """A body that cannot be read, with what is wrong as its text."""


class PredictRequest(BaseModel):
    """The body of a request: nested lists by input name, the batch first."""

    model_config = ConfigDict(extra="forbid")
    inputs: dict[str, list[Any]]


class Prediction(BaseModel):
    """The answer: nested lists by output name; null for a number that JSON does not have."""

    outputs: dict[str, list[Any]]


def from_json(body: bytes, types: dict[str, np.dtype[Any]]) -> dict[str, Any]:
    """Arrays by input name, in the types of the model.

    Raises:
        PayloadError: It is not JSON of this form, or an input is ragged or holds something else than numbers.
    """
    try:
        request = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PayloadError(f"{where or 'body'}: {first['msg']}") from error
    result = {}
    for name, values in request.inputs.items():
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise PayloadError(f"inputs.{name} is ragged.") from error
        if array.dtype.kind not in "biuf":
            raise PayloadError(f"inputs.{name} holds something else than numbers.")
        result[name] = _converted(name, array, types[name]) if name in types else array
    return result


def _converted(name: str, array: Any, wanted: np.dtype[Any]) -> Any:
    """The numbers in the type of the model, where it can hold them."""
    if wanted.kind != "f" and array.dtype.kind == "f" and array.size:
        raise PayloadError(f"inputs.{name} has fractions; the model takes {wanted}.")
    with np.errstate(all="ignore"):
        result = array.astype(wanted)
    if wanted.kind == "f" and not np.isfinite(result).all():
        raise PayloadError(f"inputs.{name} has numbers that are too large for {wanted}.")
    return result


def from_npy(body: bytes) -> Any:
    """The array in a body; no pickles, and nothing is made that the body does not hold.

    Raises:
        PayloadError: It is no such file, or of another length than it says.
    """
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # of Python's own parser, too: the header is a literal
        raise PayloadError("The body is not in NumPy's file format.") from error
    rest = memoryview(body)[stream.tell() :]
    if dtype.hasobject or min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(rest):
        raise PayloadError("The array holds objects, or is not as long as it says.")
    flat = np.frombuffer(rest, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def to_npy(array: Any) -> bytes:
    """An array in NumPy's file format."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
