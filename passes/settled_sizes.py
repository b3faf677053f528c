"""Recorded shapes of a captured graph: the example's sizes in place of symbols, and a symbol in place of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree

from autorep_fx.cost.nominal import batch_axis
from autorep_fx.passes.graphs import FREE_AXES
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.shapes import fake_mode
from autorep_fx.passes.sizes import FreeSize

__all__ = ["settle_batch", "settle_sizes"]

# Steps that are tried, to find what a size must be a multiple of.
_STEPS = 128


def settle_sizes(module: fx.GraphModule, inputs: ExampleInputs) -> tuple[FreeSize, ...]:
    """Record the example's sizes in place of symbolic ones, except the batch; returns the sizes that were free.

    The graph itself goes on computing with the sizes that it gets. What is counted, and what passes read from
    ``meta["val"]``, is then that of the example; ``meta[FREE_AXES]`` tells the axes that vary.
    """
    values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    tensors = [value for value in values if isinstance(value, Tensor)]
    batch = {symbol for value in tensors for symbol in (_symbols(value.shape[0]) if value.dim() else ())}
    free = [
        (_expression(size), (i, axis))
        for i, value in enumerate(tensors)
        for axis, size in enumerate(value.shape)
        if _symbols(size) - batch
    ]
    if not free:
        return ()
    mode = fake_mode(module)
    environment = mode.shape_env
    assert environment is not None
    hints = {symbol: int(value) for symbol, value in environment.backed_var_to_val.items()}
    given = [leaf for leaf in pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, Tensor)]
    for expression, (i, axis) in free:
        if len(given) == len(tensors) and given[i].dim() > axis:  # an exported program had an example of its own
            [symbol] = expression.free_symbols
            offset = expression.subs(symbol, 0)
            hints[symbol] = int((given[i].shape[axis] - offset) / (expression.subs(symbol, 1) - offset))
    found = _free_sizes(free, environment, hints)
    known = {symbol: value for symbol, value in hints.items() if symbol not in batch}
    for node in module.graph.nodes:
        if "val" in node.meta:
            _settle(node, known)
    return found


def _free_sizes(
    free: Sequence[tuple[Any, tuple[int, int]]], environment: ShapeEnv, hints: Mapping[Any, int]
) -> tuple[FreeSize, ...]:
    axes: dict[Any, list[tuple[int, int]]] = {}
    for expression, axis in free:
        axes.setdefault(expression, []).append(axis)
    guards = [environment.replace(guard.expr) for guard in environment.guards]
    # An exported program was made with another example: what does not hold at this one says nothing of its sizes.
    guards = [guard for guard in guards if bool(guard.subs(hints))]
    names: dict[str, int] = {}
    result = []
    for expression, where in axes.items():
        base = "width" if where[0][1] == 3 else "height"
        names[base] = names.get(base, 0) + 1
        name = base if names[base] == 1 else f"{base}_{names[base]}"
        [symbol] = expression.free_symbols
        example, unit = hints[symbol], int(expression.subs(symbol, 1) - expression.subs(symbol, 0))
        span = environment.bound_sympy(expression)
        most = int(span.upper) if span.upper.is_number and span.upper < 2**31 else None
        step = unit * _step(symbol, example, guards, hints)
        result.append(FreeSize(name, tuple(where), int(expression.subs(symbol, example)), int(span.lower), most, step))
    return tuple(result)


def _step(symbol: Any, example: int, guards: Sequence[Any], hints: Mapping[Any, int]) -> int:
    """The smallest step from the example at which all that the capture assumed holds again."""
    own = [guard for guard in guards if symbol in guard.free_symbols]
    for step in range(1, _STEPS):
        for other in (example + step, example - step):
            if all(bool(guard.subs({**hints, symbol: other})) for guard in own):
                return step
    return 1


def _settle(node: fx.Node, known: Mapping[Any, int]) -> None:
    value = node.meta["val"]
    if isinstance(value, Tensor):
        axes = frozenset(axis for axis, size in enumerate(value.shape) if _symbols(size) & known.keys())
        if axes:
            node.meta[FREE_AXES] = axes
    node.meta["val"] = pytree.tree_map(lambda leaf: _settled(leaf, known), value)


def _settled(value: Any, known: Mapping[Any, int]) -> Any:
    if isinstance(value, torch.SymInt):
        return _size(value, known)
    if not isinstance(value, Tensor) or not any(_symbols(size) & known.keys() for size in value.shape):
        return value
    sizes = [_size(size, known) for size in value.shape]
    assert isinstance(value, FakeTensor)
    with value.fake_mode:
        return torch.empty(sizes, dtype=value.dtype, device=value.device)


def _size(size: Any, known: Mapping[Any, int]) -> Any:
    if not _symbols(size) & known.keys():
        return size
    expression = size.node.expr.subs(known)
    if expression.is_number:
        return int(expression)
    return size.node.shape_env.create_symintnode(expression, hint=int(size.node.hint))


def _expression(size: Any) -> Any:
    return size.node.expr


def _symbols(size: Any) -> set[Any]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def settle_batch(module: fx.GraphModule, batch: int) -> None:
    """Record a symbol in place of a fixed batch, so that everything is counted for one sample.

    The batch is taken to be the factor of axis 0, or else the first axis that has its size.
    """
    mode = fake_mode(module)
    environment = mode.shape_env
    assert environment is not None
    expression = environment.create_symbol(
        batch, ConstantSource("batch"), DimDynamic.DYNAMIC, None, do_not_specialize_zero_one=True
    )

    def symbolic(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or not all(isinstance(size, int) for size in value.shape):
            return value
        sizes: list[Any] = list(value.shape)
        axis = batch_axis(sizes, batch)
        if axis is None:
            return value
        times = sizes[axis] // batch
        sizes[axis] = environment.create_symintnode(expression * times, hint=batch * times)
        with mode:
            return torch.empty(sizes, dtype=value.dtype, device=value.device)

    for node in module.graph.nodes:
        if "val" in node.meta and node.op != "get_attr":
            node.meta["val"] = pytree.tree_map(symbolic, node.meta["val"])
