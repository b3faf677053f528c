"""Example inputs in one form: positional and keyword arguments whose tensors share a batch axis."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autorep_fx.config import CaptureConfig
from autorep_fx.errors import ConfigError, DataError, NonFiniteError, did_you_mean
from autorep_fx.passes.nested import all_finite, batch_size, map_tensors, register_dataclasses

__all__ = ["ExampleInputs"]


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of a call of the model.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        batched: Per leaf whether its axis 0 is the batch; guessed if None.
        fixed_batch: Whether the batch is always that of these inputs.
        any_size: Whether height and width are free: axes 2 and 3 of the batched floating-point tensors with four.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batched: tuple[bool, ...] | None = None
    fixed_batch: bool = False
    any_size: bool = False

    @classmethod
    def of(cls, value: Any, capture: CaptureConfig | None = None, forward: Any = None) -> ExampleInputs:
        """Read a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.

        Args:
            value: The arguments; inputs that were read before are returned as they are.
            capture: What of their shapes may vary.
            forward: What they go into, whose parameters name positional arguments.

        Raises:
            DataError: Something else, no samples, or values that are not finite.
            ConfigError: ``batch_dims`` does not fit the inputs.
        """
        if isinstance(value, ExampleInputs):
            return value
        result = cls._read(value)
        capture = CaptureConfig() if capture is None else capture
        named = result._named(capture.batch_dims, forward)
        result = replace(
            result, batched=result._flags(named), fixed_batch=not capture.dynamic_batch, any_size=capture.dynamic_size
        )
        if result.size == 0:
            raise DataError("The example inputs hold no sample.", received="a batch of 0", fix="Pass at least one.")
        return result

    @classmethod
    def _read(cls, value: Any) -> ExampleInputs:
        register_dataclasses(value)
        value = map_tensors(value, lambda tensor: tensor.detach())
        if isinstance(value, Tensor):
            result = cls((value,), {})
        elif isinstance(value, Mapping):
            result = cls((), dict(value))
        elif isinstance(value, (tuple, list)):
            result = cls(tuple(value), {})
        else:
            raise DataError(
                "Example inputs are a tensor, a tuple of positional or a mapping of keyword arguments.",
                received=type(value).__name__,
                fix="Pass for example torch.randn(2, 3, 32, 32).",
            )
        for leaf in pytree.tree_leaves((result.args, result.kwargs)):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                raise DataError("The inputs are on the meta device.", fix="Pass inputs that have values.")
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise DataError(
                    "The inputs are not finite.",
                    received=f"NaN or infinity in a tensor of shape {tuple(leaf.shape)}",
                    fix="Clean the data, or check its normalisation.",
                )
        return result

    def _named(self, batch_dims: Mapping[str, int | None], forward: Any) -> dict[str | int, bool]:
        """The settings by position or keyword.

        Raises:
            ConfigError: There is no such input.
        """
        if not batch_dims:
            return {}
        known: dict[str, str | int] = {str(i): i for i in range(len(self.args))} | {name: name for name in self.kwargs}
        if forward is not None:
            parameters = list(inspect.signature(forward).parameters)
            known |= {name: i for i, name in enumerate(parameters[: len(self.args)])}
        unknown = [name for name in batch_dims if name not in known]
        if unknown:
            raise ConfigError(
                f"capture.batch_dims names inputs that do not exist.{did_you_mean(unknown[0], list(known))}",
                received=", ".join(unknown),
                fix=f"Name inputs by position or parameter: {', '.join(known)}.",
            )
        return {known[name]: axis is not None for name, axis in batch_dims.items()}

    def _flags(self, named: Mapping[str | int, bool]) -> tuple[bool, ...]:
        """Per leaf whether it is batched: as the settings say, or else where axis 0 has the size of the batch.

        Raises:
            ConfigError: The settings contradict the shapes.
        """
        given: list[tuple[str | int, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        keyed = [(key, leaf) for key, value in given for leaf in pytree.tree_leaves(value)]
        tensors = [(key, leaf) for key, leaf in keyed if isinstance(leaf, Tensor) and leaf.dim() > 0]
        batched = [leaf for key, leaf in tensors if named.get(key) is True]
        left = batched or [leaf for key, leaf in tensors if named.get(key) is not False]
        if tensors and not left:
            raise ConfigError(
                "capture.batch_dims leaves no input with a batch.",
                received=", ".join(map(str, named)),
                fix="Leave out the one whose first axis is the batch; or fix it: capture: {dynamic_batch: false}.",
            )
        size = batch_size(left)
        wrong = [str(key) for key, leaf in tensors if named.get(key) is True and leaf.shape[0] != size]
        wrong += [str(key) for key, leaf in keyed if named.get(key) and isinstance(leaf, Tensor) and not leaf.dim()]
        if wrong:
            raise ConfigError(
                "capture.batch_dims gives batches to inputs that do not share one.",
                received=f"input {', '.join(wrong)} without {size} rows on axis 0",
                fix="Say null for inputs without a batch.",
            )
        return tuple(
            isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size and named.get(key) is not False
            for key, leaf in keyed
        )

    def flags(self) -> tuple[bool, ...]:
        """Per leaf of the arguments, whether its axis 0 is the batch."""
        return self._flags({}) if self.batched is None else self.batched

    def free_axes(self) -> list[tuple[int, int]]:
        """``(input, axis)`` of the heights and widths that are free, inputs counted among those that are tensors."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        tensors = [(leaf, flag) for leaf, flag in zip(leaves, self.flags(), strict=True) if isinstance(leaf, Tensor)]
        images = [i for i, (t, batched) in enumerate(tensors) if batched and t.dim() == 4 and t.is_floating_point()]
        return [(i, axis) for i in images for axis in (2, 3)] if self.any_size else []

    def map(self, function: Callable[[Tensor], Tensor]) -> ExampleInputs:
        """Apply ``function`` to every batched tensor."""
        leaves, spec = pytree.tree_flatten((self.args, dict(self.kwargs)))
        made = [function(leaf) if batched else leaf for leaf, batched in zip(leaves, self.flags(), strict=True)]
        args, kwargs = pytree.tree_unflatten(made, spec)
        return replace(self, args=args, kwargs=kwargs, batched=self.flags())

    @property
    def size(self) -> int:
        """Samples in the batch."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return batch_size([leaf for leaf, batched in zip(leaves, self.flags(), strict=True) if batched])

    def resized(self, size: int) -> ExampleInputs:
        """The same samples, cycled to a batch of ``size``; these inputs themselves where the batch is fixed."""
        if self.fixed_batch:
            return self
        count = self.size
        return self.map(lambda leaf: leaf.index_select(0, torch.arange(size, device=leaf.device) % count))

    def check_same_shapes(self, other: ExampleInputs) -> None:
        """Check that the samples of ``other`` have the shapes of these; heights and widths that are free may differ.

        Raises:
            DataError: They have not, with both shapes.
        """
        own, found = (pytree.tree_leaves((i.args, dict(i.kwargs))) for i in (self, other))
        places, position = self.free_axes(), -1
        for mine, value, batched in zip(own, found, self.flags(), strict=False):
            position += isinstance(mine, Tensor)
            if not isinstance(mine, Tensor) or not isinstance(value, Tensor):
                continue
            free = {axis for place, axis in places if place == position}
            free |= {0} if batched and not self.fixed_batch else set()
            sizes = tuple(-1 if axis in free else size for axis, size in enumerate(mine.shape))
            if tuple(-1 if axis in free else size for axis, size in enumerate(value.shape)) != sizes:
                start = 0 if self.fixed_batch or not batched else 1
                kind = "inputs" if start == 0 else "samples"
                raise DataError(
                    "The samples have another shape than the model was captured with.",
                    received=f"{kind} of shape {tuple(value.shape[start:])}, expected {tuple(mine.shape[start:])}",
                    fix="Bring all samples to one shape, or capture the model with an example of this one."
                    + (" The batch is fixed: drop a last, smaller one (drop_last=True)." if self.fixed_batch else ""),
                )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExampleInputs:
        """Move all tensors, and cast the floating-point ones."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        args, kwargs = map_tensors((self.args, dict(self.kwargs)), move)
        return replace(self, args=args, kwargs=kwargs)

    def beside(self, module: object) -> ExampleInputs:
        """The same inputs on the device of a module's weights; unchanged for anything that has none."""
        held = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
        return self.to(device=held[0].device) if held else self

    def call(self, module: Callable[..., Any]) -> Any:
        """Call ``module`` with these arguments, or with copies where it may write into them."""
        if isinstance(module, nn.Module) and not isinstance(module, fx.GraphModule):
            own = self.map_all(torch.Tensor.clone)
            return module(*own.args, **own.kwargs)
        return module(*self.args, **self.kwargs)

    def map_all(self, function: Callable[[Tensor], Tensor]) -> ExampleInputs:
        """Apply ``function`` to every tensor."""
        args, kwargs = map_tensors((self.args, dict(self.kwargs)), function)
        return replace(self, args=args, kwargs=kwargs)

    def try_on(self, model: Callable[..., Any]) -> Any:
        """Run a model as it is, so that a wrong example is told from a model that cannot be captured.

        Returns:
            Its outputs.

        Raises:
            DataError: It fails.
            NonFiniteError: Its outputs are not finite.
        """
        try:
            with torch.no_grad():
                outputs = self.call(model)
        except Exception as error:
            leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))
            raise DataError(
                f"The model fails on the example inputs: {type(error).__name__}: {error}",
                received=f"tensors of shape {shapes}",
                fix="Pass example inputs that the model takes, with its device, dtype and shape.",
            ) from error
        if not all_finite(outputs):
            raise NonFiniteError(
                "The model's own outputs are not finite on the example inputs.",
                fix="Check its weights and norm statistics, and the scale of the inputs.",
            )
        return outputs
