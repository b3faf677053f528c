"""A square that opens its factor once."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from autorep_fx.runtime.secure.ops.call import Call, Operator, Value

__all__ = ["OPENED_ONCE", "square"]


def square(value: Value) -> Value:
    """``value·value``, of which the engine opens ``value`` once under a mask, and not twice.

    1. A product of ``value`` as a column with a single integer opens it, and the engine keeps what was opened. Of a
       fixed-point number and an integer no result is truncated; nothing reads it. The integer is the bits of one of
       the elements, another value to the engine, so that it has a mask of its own.
    2. The product of ``value`` with itself finds both factors opened, and sends nothing but its truncation.
    3. What was opened is forgotten, before the memory it is known by is used for another value.
    """
    from spu.experimental import drop_cached_var, make_cached_var

    column = make_cached_var(value.reshape(-1, 1))
    one = lax.bitcast_convert_type(-column[:1], jnp.int32)
    opening, result = column @ one, column * column
    drop_cached_var(column, opening, result)
    return result.reshape(value.shape)


def _square(call: Call) -> Value:
    return square(call[0])


#: A product of a value with itself.
OPENED_ONCE = Operator(_square)
