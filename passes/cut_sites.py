"""Sites whose kept channels were cut out, as a record on their concatenation: what an export may write otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.gates.operation import Operation
from autorep_fx.passes.forms import Form, same_scale
from autorep_fx.passes.gate_forms import HOMOGENEOUS, Kind, NaturalForm

__all__ = ["CUT_KEY", "CutSite", "around_activation", "around_polynomial", "cut_site"]

#: The key under which a concatenation carries its :class:`CutSite`.
CUT_KEY = "cut_site"


@dataclass(frozen=True)
class CutSite:
    """How the channels of a site follow from what is stored before it.

    Kept ones are ``scale_out · activation(scale_in · x + shift_in) + shift``, others ``x·x + shift`` or ``x + shift``.

    Attributes:
        kept: Kept channels, in order, int64.
        squares: Whether the others are squared.
        activation: Of the kept ones.
        scale_in: ``(kept,)``, float64, and so the others.
        shift_in: ``(kept,)``.
        scale_out: ``(kept,)``.
        shift: ``(C,)``.
        reach: Largest absolute ``x`` of a kept channel that the samples gave; infinity where it is not known.
    """

    kept: Tensor
    squares: bool
    activation: Operation
    scale_in: Tensor
    shift_in: Tensor
    scale_out: Tensor
    shift: Tensor
    reach: float

    @property
    def is_plain(self) -> bool:
        """Whether kept channels are the activation of what is stored, but for a shift."""
        return bool((self.scale_in == 1).all() and (self.shift_in == 0).all() and (self.scale_out == 1).all())


def cut_site(gate: GatedActivation, natural: NaturalForm, given: Form, made: Form) -> CutSite | None:
    """The record of a site; None where its channels are of more kinds, or have parameters of their own."""
    kept = natural.kinds == Kind.KEPT
    others = natural.kinds[~kept].unique().tolist()
    if isinstance(gate, GatedPool) or gate.parameter is not None or not bool(kept.any()):
        return None
    factor, addend = around_polynomial(natural, made)
    if others not in ([Kind.SQUARE], [Kind.LINEAR]) or bool((factor[~kept] != 1).any()):
        return None
    if others == [Kind.SQUARE] and bool(natural.offset[~kept].any()):
        return None
    # As lowering stores them.
    dtype = gate.coefficients.dtype
    around = (value[kept].to(dtype).double() for value in around_activation(gate, given, made))
    scale_in, shift_in, scale_out, addend[kept] = around
    reach = (gate.input_range.abs().max().double().cpu() / given.scale[kept].abs().min()).item()
    return CutSite(
        kept.nonzero().flatten(), others == [Kind.SQUARE], gate.activation, scale_in, shift_in, scale_out,
        addend.to(dtype).double(), reach if reach == reach else float("inf"),
    )  # fmt: skip


def around_activation(gate: GatedActivation, given: Form, made: Form) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(C,)`` each: scale and shift of stored values before the activation, and of its result behind it."""
    s, t, scale = given.scale, given.shift, made.scale
    along = (s > 0) & (gate.site.kind in HOMOGENEOUS)  # f(s·x) = s·f(x)
    before, behind = torch.where(along, 1.0, s), torch.where(along, s / scale, 1 / scale)
    return before, torch.where(along, t / s, t), behind, -made.shift / scale


def around_polynomial(natural: NaturalForm, made: Form) -> tuple[Tensor, Tensor]:
    """``(C,)`` each: factor and addend that no neighbour takes, behind what the others compute."""
    out = natural.out
    left = same_scale(out.scale, made.scale)  # also a scale of 0: a constant that the neighbours have
    factor = torch.where(left, 1.0, out.scale / made.scale)
    addend = out.shift - made.shift
    return factor, torch.where(addend == 0, 0.0, addend / made.scale)
