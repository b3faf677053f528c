"""Example inputs in one form: positional and keyword arguments whose tensors share a batch axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep_fx.errors import DataError, NonFiniteError

__all__ = ["ExampleInputs", "all_finite", "batch_size", "map_tensors", "resize_batch"]


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a nested value."""
    return pytree.tree_map_only(Tensor, function, value)


def batch_size(value: Any) -> int:
    """Size of axis 0 of the first tensor in a nested value.

    Raises:
        DataError: There is no tensor with at least one axis.
    """
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    raise DataError(
        "The inputs hold no tensor with a batch axis.",
        received=type(value).__name__,
        fix="Pass a tensor (N, ...), a tuple of them (positional) or a mapping (keywords).",
    )


def all_finite(value: Any) -> bool:
    """Whether every floating-point tensor of a nested value is free of NaN and infinity."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves)


def resize_batch(value: Any, size: int) -> Any:
    """Cycle the samples of every batched tensor until there are ``size`` of them."""
    count = batch_size(value)

    def resize(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != count:
            return tensor
        index = torch.arange(size, device=tensor.device) % count
        return tensor.index_select(0, index)

    return map_tensors(value, resize)


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of a call of the model.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, value: Any) -> ExampleInputs:
        """Read a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.

        Raises:
            DataError: Something else, no samples, or values that are not finite.
        """
        if isinstance(value, ExampleInputs):
            return value
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
        if result.size == 0:
            raise DataError("The example inputs hold no sample.", received="a batch of 0", fix="Pass at least one.")
        for leaf in pytree.tree_leaves((result.args, result.kwargs)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise DataError(
                    "The inputs are not finite.",
                    received=f"NaN or infinity in a tensor of shape {tuple(leaf.shape)}",
                    fix="Clean the data, or check its normalisation.",
                )
        return result

    @property
    def size(self) -> int:
        """Samples in the batch."""
        return batch_size((self.args, self.kwargs))

    def resized(self, size: int) -> ExampleInputs:
        """The same samples, cycled to a batch of ``size``."""
        args, kwargs = resize_batch((self.args, dict(self.kwargs)), size)
        return ExampleInputs(args, kwargs)

    def check_same_shapes(self, other: ExampleInputs) -> None:
        """Check that the samples of ``other`` have the shapes of these; batch sizes may differ.

        Raises:
            DataError: They have not, with both shapes.
        """
        own, found = (pytree.tree_leaves((i.args, dict(i.kwargs))) for i in (self, other))
        for mine, value in zip(own, found, strict=False):
            if isinstance(mine, Tensor) and isinstance(value, Tensor) and mine.shape[1:] != value.shape[1:]:
                raise DataError(
                    "The samples have another shape than the model was captured with.",
                    received=f"samples of shape {tuple(value.shape[1:])}, expected {tuple(mine.shape[1:])}",
                    fix="Bring all samples to one shape, or capture the model with an example of this one.",
                )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExampleInputs:
        """Move all tensors, and cast the floating-point ones."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        args, kwargs = map_tensors((self.args, dict(self.kwargs)), move)
        return ExampleInputs(args, kwargs)

    def beside(self, module: object) -> ExampleInputs:
        """The same inputs on the device of a module's weights; unchanged for anything that has none."""
        held = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
        return self.to(device=held[0].device) if held else self

    def call(self, module: Callable[..., Any]) -> Any:
        """Call ``module`` with these arguments."""
        return module(*self.args, **self.kwargs)

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
