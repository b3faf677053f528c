"""Free sizes: heights and widths that a captured graph takes other values of than those of the example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree

from autorep_fx.cost.nominal import batch_axis
from autorep_fx.errors import DataError
from autorep_fx.passes.graphs import FREE_AXES
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.shapes import fake_mode

__all__ = [
    "FreeSize", "at_sizes", "check_batch", "check_sizes", "counted_at", "other_sizes", "settle_batch", "settle_sizes",
    "shape_notes",
]  # fmt: skip

# Steps that are tried, to find what a size must be a multiple of.
_STEPS = 128


@dataclass(frozen=True)
class FreeSize:
    """One size that may vary, on all axes that share it.

    Attributes:
        name: ``height``, ``width``, or one of these with a number.
        axes: ``(input, axis)``, inputs counted among those that are tensors.
        example: The size that everything is counted at.
        least: The smallest size that the graph holds for.
        most: The largest one; None without a bound.
        step: What sizes differ by, such as 8 for a network that halves and doubles them three times.
    """

    name: str
    axes: tuple[tuple[int, int], ...]
    example: int
    least: int
    most: int | None
    step: int

    def takes(self, size: int) -> bool:
        """Whether the graph holds for ``size``."""
        return self.least <= size <= (self.most or size) and (size - self.example) % self.step == 0

    def __str__(self) -> str:
        bounds = f"from {self.least}" if self.most is None else f"from {self.least} to {self.most}"
        start = f", as {self.example} plus or minus multiples of {self.step}" if self.step > 1 else ""
        return f"{self.name} {bounds}{start}"

    def to_json(self) -> dict[str, Any]:
        """For the metadata of an ONNX file."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "axes")}


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


def other_sizes(sizes: Sequence[FreeSize]) -> list[dict[str, int]]:
    """Two further choices of sizes, for checks: larger by steps of their own, and smaller where that is allowed."""
    larger = {size.name: size.example + (1 + 2 * i) * size.step for i, size in enumerate(sizes)}
    smaller = {size.name: size.example + (-1) ** (i + 1) * size.step for i, size in enumerate(sizes)}
    chosen = [
        {size.name: choice[size.name] if size.takes(choice[size.name]) else size.example for size in sizes}
        for choice in (larger, smaller)
    ]
    example = {size.name: size.example for size in sizes}
    return [choice for i, choice in enumerate(chosen) if choice != example and choice not in chosen[:i]]


def at_sizes(inputs: ExampleInputs, sizes: Sequence[FreeSize], values: Mapping[str, int]) -> ExampleInputs:
    """The same inputs at other sizes, rows and columns repeated in turn."""
    wanted = {place: values[size.name] for size in sizes for place in size.axes}
    leaves, spec = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
    position = -1
    for i, leaf in enumerate(leaves):
        position += isinstance(leaf, Tensor)
        for axis in (axis for place, axis in wanted if isinstance(leaf, Tensor) and place == position):
            index = torch.arange(wanted[position, axis], device=leaf.device) % leaves[i].shape[axis]
            leaves[i] = leaves[i].index_select(axis, index)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return replace(inputs, args=args, kwargs=kwargs)


def check_sizes(sizes: Sequence[FreeSize], arguments: Any) -> None:
    """Check that the sizes of inputs are those that the graph was captured for.

    Raises:
        DataError: One is not.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    for size in sizes:
        found = {tensors[i].shape[axis] for i, axis in size.axes if i < len(tensors) and tensors[i].dim() > axis}
        if len(found) > 1 or not all(size.takes(value) for value in found):
            raise DataError(
                "The model was not captured for inputs of this size.",
                received=f"{size.name} {', '.join(map(str, sorted(found)))}",
                fix=f"Pass {size}" + (", the same on all axes that share it." if len(size.axes) > 1 else "."),
            )


def check_values(fixed: Sequence[tuple[int, Any]], inputs: Any) -> None:
    """Check that what is no tensor among the inputs is what the graph was captured with.

    Raises:
        DataError: It is something else.
    """
    leaves = pytree.tree_leaves(inputs)
    other = [(place, value) for place, value in fixed if place >= len(leaves) or leaves[place] != value]
    if other:
        raise DataError(
            "Inputs that are no tensors were captured with the values of the example, and hold for these alone.",
            received=", ".join(
                f"input {i}: {leaves[i] if i < len(leaves) else 'nothing'!r}, not {v!r}" for i, v in other
            ),
            fix="Pass the values of the example, or capture again with others.",
        )


def check_batch(batch: int, arguments: Any) -> None:
    """Check that inputs have the batch that the graph was captured with.

    Raises:
        DataError: None of them has.
    """
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim()]
    if all(shape[0] != batch for shape in shapes):
        raise DataError(
            f"The model was captured for a fixed batch of {batch}.",
            received=f"tensors of shape {', '.join(map(str, shapes))}",
            fix=f"Pass {batch} samples at a time; or capture with dynamic_batch, if the model can be captured so.",
        )


def counted_at(sizes: Sequence[FreeSize], inputs: ExampleInputs) -> str | None:
    """The sample that everything is counted at, such as ``3×64×64``; None where no size is free."""
    if not sizes:
        return None
    tensors = [leaf for leaf in pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, Tensor)]
    places = dict.fromkeys(place for size in sizes for place, _ in size.axes)
    return ", ".join("×".join(map(str, tensors[place].shape[1:])) for place in places)


def shape_notes(module: Any, inputs: ExampleInputs) -> list[str]:
    """What a user must know of the shapes that a captured module takes."""
    notes = []
    if module.sizes:
        free = "; ".join(map(str, module.sizes))
        notes.append(f"sizes are free ({free}), and all comparisons are counted at {counted_at(module.sizes, inputs)}")
    if module.fixed_batch is not None:
        notes.append(
            f"the batch is fixed to {module.fixed_batch}; whether samples influence one another was not checked, nor "
            "were polynomials tried on other inputs than those that they were fitted on"
        )
    return notes
