"""Strategies that draw random networks, valid by construction, and how they are to be compiled."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from property.activations import FORMS, Activation
from property.blocks import (
    Block,
    Branches,
    ConvBlock,
    Gated,
    InPlaceResidual,
    NoGrad,
    PreActivation,
    Residual,
    SliceWrite,
)
from property.layers import Convolution, Norm
from property.mixers import Bare, Dropout, Glu, Pool, Split, Tokens, Upsample
from property.networks import Head, Network

__all__ = ["Choices", "choices", "networks"]

#: Alone behind a ReLU or a clip these stay what they are; the others become the clip, or one with it.
_BARE = ("silu", "gelu", "mish", "hardswish", "sigmoid", "tanh", "softplus", "selu", "prelu")

# 0 is left out: where all that reaches a site is constant, the plan counts the site and the lowered graph does not.
DEGREES = (1, 2)


def activations(kinds: tuple[str, ...] = tuple(FORMS)) -> st.SearchStrategy[Activation]:
    """An activation of one of the kinds, in any spelling."""
    pairs = [(kind, form) for kind in kinds for form in FORMS[kind]]
    # ReLU is what most networks have, and what is shared and merged.
    pairs += [(kind, form) for kind, form in pairs if kind == "relu" for _ in range(2)]
    return st.builds(lambda pair, shared: Activation(*pair, shared), st.sampled_from(pairs), st.booleans())


def norms(*kinds: str) -> st.SearchStrategy[Norm]:
    """A norm, mostly a batch norm as most networks have it."""
    usual = st.just(Norm())
    momentum = st.sampled_from([0.1, 0.3, None])
    return usual | st.builds(Norm, st.sampled_from(kinds or ("batch", "batch", "group", "instance")), momentum,
                             st.booleans(), st.sampled_from([True, True, False]))  # fmt: skip


def blocks() -> st.SearchStrategy[Block]:
    """One block."""
    act, norm, flag = activations(), norms(), st.booleans()
    convolution = st.builds(
        Convolution, st.sampled_from([4, 6, 8]), st.sampled_from([1, 3]), st.sampled_from([1, 1, 2]), flag,
        st.sampled_from([1, 1, 2]), st.sampled_from([1, 2, 24]), st.sampled_from([False, False, False, True]),
    )  # fmt: skip
    gate = activations(("sigmoid", "hardsigmoid"))
    return st.one_of(
        st.builds(ConvBlock, convolution, st.none() | norm, st.none() | act),
        st.builds(Residual, norm, act, act, flag),
        st.builds(InPlaceResidual, act),
        st.builds(PreActivation, norm, act),
        st.builds(Branches, st.lists(act, min_size=1, max_size=3).map(tuple), flag),
        st.builds(Gated, act, gate, flag),
        st.builds(SliceWrite, act, st.sampled_from(["assign", "scale", "add", "method"])),
        st.builds(NoGrad, norm, act),
        st.builds(Split, act),
        st.builds(Pool, st.sampled_from(["max", "avg", "adaptive_max", "adaptive_avg"]), st.sampled_from([2, 3]),
                  st.sampled_from([1, 2]), flag),
        st.builds(Upsample, st.sampled_from(["nearest", "bilinear"])),
        st.builds(Dropout, st.sampled_from([0.0, 0.5]), st.sampled_from(["elements", "channels", "function"])),
        st.builds(Bare, activations(_BARE)),
        st.just(Glu()),
        st.builds(Tokens, st.sampled_from([3, 5]), act, flag),
    )  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """A network with something to gate."""
    middle = draw(st.lists(blocks(), min_size=1, max_size=5))
    output = st.sampled_from(["tensor", "tensor", "tuple", "list", "dict", "named", "record"])
    head = draw(st.builds(Head, st.booleans(), st.none() | activations(), st.booleans(), output))
    second = draw(st.sampled_from(["none", "none", "image", "vector"]))
    first = draw(
        st.builds(ConvBlock, st.builds(Convolution, st.sampled_from([4, 6])), st.none() | norms(), activations())
    )
    return Network((first, *middle), head, second, draw(st.integers(0, 99)))


@dataclass(frozen=True)
class Choices:
    """How a network is compiled.

    Attributes:
        share: Of what gates may keep, how much the budget allows, from 0 to 1.
        granularity: Of the gates.
        degree: Of the polynomials.
        pools: Whether max pooling is gated.
        modes: Modes of the gateable sites, in order and repeated; at least one site is gated.
    """

    share: float
    granularity: str
    degree: int
    pools: bool
    modes: tuple[str, ...]


def choices(degrees: tuple[int, ...] = DEGREES) -> st.SearchStrategy[Choices]:
    """Any of them."""
    modes = st.lists(st.sampled_from(["gate", "gate", "keep", "replace", "ignore"]), min_size=1, max_size=4)
    return st.builds(
        Choices, st.floats(0, 1), st.sampled_from(["element", "channel", "site"]), st.sampled_from(degrees),
        st.booleans(), st.just(("gate",)) | modes.map(lambda found: ("gate", *found)),
    )  # fmt: skip
