"""Arithmetic and activations, one element at a time."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np

from autorep_fx.runtime.secure.ops.call import Call, Operator, Value
from autorep_fx.runtime.secure.public import Node

__all__ = ["OPERATORS"]

_BOOLEAN, _FLOATING = 9, {1, 10, 11, 16}


def _binary(function: Any) -> Operator:
    return Operator(lambda call: function(call[0], call[1]))


def _divide(call: Call) -> Value:
    if isinstance(call[0], np.ndarray) and isinstance(call[1], np.ndarray):
        return np.asarray(np.trunc(call[0] / call[1]), dtype=call[0].dtype)  # shapes: integers, towards zero
    return call[0] / call[1]


def _relu(call: Call) -> Value:
    return jnp.maximum(call[0], 0)


def _leaky_relu(call: Call) -> Value:
    """``r + a·(x − r)`` with ``r = relu(x)``: one comparison and one product with the secret slope."""
    rectified = jnp.maximum(call[0], 0)
    return rectified + call[1] * (call[0] - rectified)


def _clip(call: Call) -> Value:
    low, high = call[1], call[2]
    value = call[0] if low is None else call.xp.maximum(call[0], low)
    return value if high is None else call.xp.minimum(value, high)


def _hard_sigmoid(call: Call) -> Value:
    """``min(max(x/6 + 1/2, 0), 1)``, the form that torch has; the split refuses other slopes."""
    return call.xp.minimum(call.xp.maximum(call[0] * np.float32(1 / 6) + np.float32(0.5), 0), 1)


def _hard_swish(call: Call) -> Value:
    return call[0] * _hard_sigmoid(call)


def _fold(name: str) -> Operator:
    """Max, Min and Sum take any number of inputs."""
    return Operator(lambda call: functools.reduce(getattr(call.xp, name), call.args))


def _cast(call: Call) -> Value:
    if not isinstance(call[0], np.ndarray):
        return call[0]  # every floating type is the ring's fixed point
    to = int(call.attribute("to"))
    return call[0].astype(bool if to == _BOOLEAN else np.float32 if to in _FLOATING else np.int64)


def _cast_obstacles(node: Node) -> list[str]:
    to = int(node.attributes.get("to", 1))
    return [] if to in _FLOATING or to in (6, 7, _BOOLEAN) else [f"a cast to ONNX type {to}"]


OPERATORS = {
    "Abs": Operator(lambda call: call.xp.abs(call[0])),
    "Add": _binary(operator.add),
    "Cast": Operator(_cast, _cast_obstacles),
    "Clip": Operator(_clip),
    "Div": Operator(_divide),
    "HardSigmoid": Operator(_hard_sigmoid),
    "HardSwish": Operator(_hard_swish),
    "Identity": Operator(lambda call: call[0]),
    "LeakyRelu": Operator(_leaky_relu),
    "Max": _fold("maximum"),
    "Min": _fold("minimum"),
    "Mul": _binary(operator.mul),
    "Neg": Operator(lambda call: -call[0]),
    "PRelu": Operator(_leaky_relu),
    "Relu": Operator(_relu),
    "Sub": _binary(operator.sub),
    "Sum": _fold("add"),
}
