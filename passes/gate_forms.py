"""What a projected gate computes on values as they are stored: per channel the cheapest exact kind of arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import torch
from torch import Tensor

from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.passes.form_costs import MOST_RUNS, cheaper_apart
from autorep_fx.passes.forms import Form

__all__ = [
    "CONDITIONING", "HOMOGENEOUS", "Kind", "NaturalForm", "foreseen_kinds", "kept_by_channel", "natural_form",
    "padded_coefficients", "runs", "wished_shift",
]  # fmt: skip

#: Kinds of activations with f(a·x) = a·f(x) for a > 0.
HOMOGENEOUS = {"relu", "leaky_relu", "prelu"}
# Largest offset in z·(z + offset), in units of the true value: beyond it a channel is nearly linear, and its small c2
# goes into the weights behind it, which float16 and fixed point then cut short. With 18 fraction bits a LeNet was off
# by 0.15 without a bound, by 8e-3 at 1e4 and by 1e-3 at 256, for 0.2 % more products.
_LARGEST_OFFSET = 1000.0
# Least scale in which a channel with kept elements may be stored: these are divided by it. Where hardly anything passes
# a ReLU its polynomial is nearly flat, and the quotients of one site multiply with those of the next: a RegNet left
# float32 after eight of them.
_LEAST_SCALE = 2.0**-10
#: Largest √|c2|·|h| at which a square is completed; the cancellation costs about its square times the rounding.
CONDITIONING = 2.0
# An offset that is nothing but rounding of float64.
_ROUNDING = 1e-12


class Kind(IntEnum):
    """What a channel computes where it is replaced.

    KEPT: the activation, everywhere. SQUARE: ``z·(z + offset)``, one multiplication, none of them by a constant.
    LINEAR: nothing. GENERAL: the polynomial as it is.
    """

    KEPT = 0
    SQUARE = 1
    LINEAR = 2
    GENERAL = 3


@dataclass(frozen=True)
class NaturalForm:
    """What a gate leaves when it computes nothing but what it must.

    Attributes:
        kinds: ``(C,)`` of :class:`Kind`.
        offset: ``(C,)``, of the squares; 0 where the input is stored around the vertex.
        polynomial: ``(3, C)`` coefficients of the true output in the stored input, float64.
        out: The form of what it leaves.
    """

    kinds: Tensor
    offset: Tensor
    polynomial: Tensor
    out: Form


def runs(kinds: Tensor) -> list[tuple[int, int]]:
    """Stretches of equal values."""
    edges = (kinds[1:] != kinds[:-1]).nonzero().flatten().add(1).tolist()
    return list(pairwise([0, *edges, len(kinds)]))


def padded_coefficients(gate: GatedActivation) -> Tensor:
    """``(3, C)``, float64, lowest power first."""
    rows = gate.coefficients.detach().double().cpu()
    return torch.cat([rows, rows.new_zeros(3 - len(rows), rows.shape[1])])


def kept_by_channel(gate: GatedActivation) -> Tensor:
    """``(C, elements)`` of the state."""
    kept = gate.kept.expand(gate.site.shape).movedim(gate.site.channel_axis, 0)
    return kept.reshape(gate.site.channels, -1).cpu()


def wished_shift(gate: GatedActivation, bound: float, *, true_output: bool = False) -> Tensor:
    """``(C,)`` shift in which the gate would like to find its input; NaN where it does not matter.

    Activations want the true value. A quadratic wants ``x + h`` with ``h = c1 / 2·c2``, the distance to its vertex, as
    long as completing the square is well-conditioned: ``√|c2|·|h|`` at most ``bound``. A linear polynomial whose
    readers take no shift (``true_output``) wishes the one with which it has none.
    """
    c0, c1, c2 = padded_coefficients(gate)
    vertex = -c1 / (2 * c2)
    square = (c2 != 0) & (c2.abs().sqrt() * vertex.abs() <= bound)
    wish = torch.where(square, vertex, torch.nan)
    if true_output:
        wish = torch.where((c2 == 0) & (c1 != 0), -c0 / c1, wish)
    activated = natural_form(gate, Form.identity(1, gate.site.channels)).kinds == Kind.KEPT
    return torch.where(activated, 0.0, wish)


def natural_form(gate: GatedActivation, given: Form) -> NaturalForm:
    """The cheapest exact arithmetic for an input that is stored as ``given``."""
    s, polynomial = given.scale, _stored_polynomial(gate, given)
    kinds = _kinds(gate, polynomial, s)
    square, linear = kinds == Kind.SQUARE, kinds == Kind.LINEAR
    kept = (kinds == Kind.KEPT) & (s > 0) & (gate.site.kind in HOMOGENEOUS)
    scale = torch.where(square, polynomial[2], torch.where(linear, polynomial[1], torch.where(kept, s, 1.0)))
    shift = torch.where(square | linear, polynomial[0], 0.0)
    offset = torch.where(square, polynomial[1] / polynomial[2], 0.0)
    return NaturalForm(kinds, offset, polynomial, Form(given.axis, scale, shift))


def foreseen_kinds(gate: GatedActivation) -> Tensor:
    """``(C,)`` of :class:`Kind` that each channel has where it finds its input as it wishes, and is cut from others."""
    wish = wished_shift(gate, CONDITIONING).nan_to_num(0.0)
    given = Form(1, torch.ones_like(wish), wish)
    replaced = _replaced_kinds(gate, _stored_polynomial(gate, given), given.scale)
    return torch.where(kept_by_channel(gate).all(1), int(Kind.KEPT), replaced)


def _stored_polynomial(gate: GatedActivation, given: Form) -> Tensor:
    """``(3, C)`` coefficients of the true output in an input that is stored as ``given``."""
    s, t = given.scale, given.shift
    c0, c1, c2 = padded_coefficients(gate)
    polynomial = torch.stack([c0 + (c1 + c2 * t) * t, (c1 + 2 * c2 * t) * s, c2 * s * s])
    # What is nothing but rounding: the constant and the offset that a wish was granted for.
    gone = (c2 == 0) & ((c0 + c1 * t).abs() <= _ROUNDING * c0.abs())
    polynomial[0] = torch.where(gone, 0.0, polynomial[0])
    size = (c1.abs() + (2 * c2 * t).abs()) * s.abs()
    polynomial[1] = torch.where((c2 != 0) & (polynomial[1].abs() <= _ROUNDING * size), 0.0, polynomial[1])
    return polynomial


def _replaced_kinds(gate: GatedActivation, polynomial: Tensor, scale: Tensor) -> Tensor:
    """Per channel the cheapest kind that is exact for what is replaced in it."""
    kinds = torch.full_like(polynomial[0], Kind.GENERAL, dtype=torch.int64)
    if isinstance(gate, GatedPool):
        return kinds
    kept = kept_by_channel(gate).any(1)
    if bool(polynomial[1:].any()):  # a constant everywhere is one, not nothing
        kinds[(polynomial[2] == 0) & ((polynomial[1] != 0) | ~kept)] = Kind.LINEAR
    near = (polynomial[1] / polynomial[2] * scale).abs() <= _LARGEST_OFFSET
    kinds[(polynomial[2] != 0) & near] = Kind.SQUARE
    leading = torch.where(kinds == Kind.SQUARE, polynomial[2], polynomial[1]).abs()
    kinds[kept & (leading < _LEAST_SCALE)] = Kind.GENERAL
    return kinds


def _kinds(gate: GatedActivation, polynomial: Tensor, scale: Tensor) -> Tensor:
    """Per channel the cheapest kind, in the order in which the channels are."""
    kept, kinds = kept_by_channel(gate), _replaced_kinds(gate, polynomial, scale)
    whole = kept.all(1)
    apart = torch.where(whole, int(Kind.KEPT), kinds)
    if isinstance(gate, GatedPool):  # decides by whole channels, on averages
        return apart
    single = bool((kept.any(1) & ~whole).any())  # then those of whole channels may be gathered with the others
    if not single or cheaper_apart(kept.numel(), int(kept[whole].sum()), len(runs(apart))):
        kinds = apart
    if not bool((kinds == Kind.KEPT).any()) and len(runs(kinds)) > MOST_RUNS:
        kinds[:] = Kind.GENERAL  # one form for all beats cutting the channels apart
    return kinds
