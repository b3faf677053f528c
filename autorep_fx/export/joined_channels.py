"""Read a site that was lowered to slices of its channels and their concatenation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from autorep_fx.kinds import KINDS
from autorep_fx.passes.graphs import aten_name, node_shape
from autorep_fx.passes.linear_ops import constant_of

__all__ = ["Joined", "joined_channels"]

aten = torch.ops.aten
_ACTIVATIONS = {kind.target for kind in KINDS.values() if not kind.parameters}


@dataclass(frozen=True)
class Joined:
    """Stretches of the channels of ``source``, ``(N, C, H, W)``: kept ones, and others that are all of one kind.

    A kept channel is ``scale_out · activation(scale_in · x + shift_in) + shift``, another ``x·x + shift`` or
    ``x + shift``.

    Attributes:
        node: The concatenation.
        source: What the stretches are cut from.
        slices: The slices.
        squares: Whether what is not kept is squared.
        kept: Kept channels, in order, int64.
        activation: One call of the activation.
        scale_in: ``(kept,)``, float64, and so the others.
        shift_in: ``(kept,)``.
        scale_out: ``(kept,)``.
        shift: ``(C,)``.
    """

    node: fx.Node
    source: fx.Node
    slices: tuple[fx.Node, ...]
    squares: bool
    kept: Tensor
    activation: fx.Node
    scale_in: Tensor
    shift_in: Tensor
    scale_out: Tensor
    shift: Tensor

    @property
    def channels(self) -> int:
        """Channels of the source."""
        return len(self.shift)

    @property
    def is_plain(self) -> bool:
        """Whether kept channels are the activation of what is stored, but for a shift."""
        return bool((self.scale_in == 1).all() and (self.shift_in == 0).all() and (self.scale_out == 1).all())


@dataclass(frozen=True)
class _Part:
    """One stretch, ``scale · core + shift``: the core is a slice, its square, or an activation of a slice."""

    cut: fx.Node
    scale: Tensor
    shift: Tensor
    square: bool = False

    @property
    def channels(self) -> range:
        """Channels of the source that it has."""
        start = self.cut.args[2]
        assert isinstance(start, int)
        return range(start, start + len(self.scale))


@dataclass(frozen=True)
class _Kept(_Part):
    """One that is kept: ``scale · activation(scale_in · slice + shift_in) + shift``."""

    activation: fx.Node = field(kw_only=True)
    scale_in: Tensor = field(kw_only=True)
    shift_in: Tensor = field(kw_only=True)


def joined_channels(module: fx.GraphModule, node: fx.Node) -> Joined | None:
    """What a concatenation joins; None where it is anything else, or of a shape that this module does not describe."""
    shape = node_shape(node)
    if shape is None or len(shape) != 4 or node.args[1:] != (1,) or not isinstance(node.args[0], (list, tuple)):
        return None
    parts = [_part(module, value) for value in node.args[0] if isinstance(value, fx.Node)]
    kept = [part for part in parts if isinstance(part, _Kept)]
    others = [part for part in parts if part is not None and not isinstance(part, _Kept)]
    sources = {part.cut.args[0] for part in (*kept, *others)}
    if len(kept) + len(others) != len(node.args[0]) or not kept or not others or len(sources) != 1:
        return None
    [source], in_order = sources, [part for part in parts if part is not None]
    covered = [channel for part in in_order for channel in part.channels]
    uniform = len({part.square for part in others}) == 1 and all(bool((part.scale == 1).all()) for part in others)
    calls = {(part.activation.target, part.activation.args[1:], str(part.activation.kwargs)) for part in kept}
    if covered != list(range(shape[1])) or not uniform or len(calls) != 1:
        return None
    if not isinstance(source, fx.Node) or node_shape(source) != shape:
        return None
    return Joined(
        node, source, tuple(part.cut for part in in_order), others[0].square,
        torch.tensor([channel for part in kept for channel in part.channels]), kept[0].activation,
        torch.cat([part.scale_in for part in kept]), torch.cat([part.shift_in for part in kept]),
        torch.cat([part.scale for part in kept]), torch.cat([part.shift for part in in_order]),
    )  # fmt: skip


def _part(module: fx.GraphModule, value: fx.Node) -> _Part | None:
    """One stretch, each step of which nothing else reads."""
    core, scale, shift = _affine(module, value)
    if len(core.users) != 1:
        return None
    if _is_cut(core):
        return _Part(core, scale, shift)
    inner = core.all_input_nodes[0] if len(core.all_input_nodes) == 1 else core
    if core.target is aten.mul.Tensor:
        square = core.args == (inner, inner) and _is_cut(inner)
        return _Part(inner, scale, shift, square=True) if square else None
    cut, scale_in, shift_in = _affine(module, inner)
    if aten_name(core) not in _ACTIVATIONS or not _is_cut(cut):
        return None
    return _Kept(cut, scale, shift, activation=core, scale_in=scale_in, shift_in=shift_in)


def _is_cut(node: fx.Node) -> bool:
    """Whether a node is a stretch of channels, from a known one on, that one node reads."""
    cuts = node.target is aten.slice.Tensor and len(node.args) == 4 and node.args[1] == 1
    return bool(cuts) and isinstance(node.args[2], int) and len(node.users) == 1


def _affine(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Tensor, Tensor]:
    """What ``scale · inner + shift`` is computed of, with both constants, ``(C,)``."""
    shape = node_shape(node)
    assert shape is not None
    scale = torch.ones(shape[1], dtype=torch.float64)
    shift = torch.zeros(shape[1], dtype=torch.float64)
    addend = _constant(module, node, aten.add.Tensor)
    if addend is not None:
        shift, node = addend, node.args[0]  # type: ignore[assignment]
    factor = _constant(module, node, aten.mul.Tensor)
    if factor is not None:
        scale, node = factor, node.args[0]  # type: ignore[assignment]
    return node, scale, shift


def _constant(module: fx.GraphModule, node: fx.Node, target: object) -> Tensor | None:
    """The constant, ``(C,)``, of a sum or product of an image with ``(C, 1, 1)`` that one node reads."""
    if node.target is not target or len(node.args) != 2 or node.kwargs or len(node.users) != 1:
        return None
    shape, constant = node_shape(node), constant_of(module, node.args[1])
    if shape is None or constant is None or tuple(constant.shape) != (shape[1], 1, 1):
        return None
    return constant.double().flatten()
