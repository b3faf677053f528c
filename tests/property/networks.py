"""Random networks: a specification, what it must compare, and the module that it describes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from property.activations import Activation, ExpectedSite, Made
from property.blocks import Block
from property.layers import Shape

__all__ = ["IMAGE", "Head", "Network"]

IMAGE: Shape = (3, 8, 8)
_VECTOR = 5


class Pair(NamedTuple):
    """A named output."""

    logits: Tensor
    features: Tensor


@dataclass
class Record:
    """An output that is a data class."""

    logits: Tensor
    features: Tensor


torch.export.register_dataclass(Record, serialized_type_name="property.Record")


@dataclass(frozen=True)
class Head:
    """The end of a network.

    Attributes:
        flat: Whether all elements go into the linear layer, or their mean per channel.
        activation: A hidden layer with this activation, or None.
        norm: Whether the hidden layer is normalised.
        output: ``tensor``, or what holds the logits and the last features: ``tuple``, ``list``, ``dict``, ``named``,
            ``record``.
    """

    flat: bool
    activation: Activation | None
    norm: bool
    output: str


@dataclass(frozen=True)
class Network:
    """A network of blocks.

    Attributes:
        blocks: The blocks, in order.
        head: Its end.
        second: A second input that the first block's output is combined with: ``none``, ``image`` or ``vector``.
        seed: Of its weights.
    """

    blocks: tuple[Block, ...]
    head: Head
    second: str = "none"
    seed: int = 0

    def shapes(self) -> list[Shape]:
        """Shape of the input and of what each block gives, for one sample."""
        result = [IMAGE]
        for block in self.blocks:
            result.append(block.shape(result[-1]))
        return result

    def sites(self) -> list[ExpectedSite]:
        """What compares, in the order of execution."""
        pairs = zip(self.blocks, self.shapes(), strict=False)
        found = [site for block, shape in pairs for site in block.sites(shape)]
        return found if self.head.activation is None else [*found, self.head.activation.site(6)]

    def rounds_alike(self, *, canonical: bool) -> bool:
        """Whether gradients are bit for bit those of functional calls, and of canonical ones if asked.

        The gradient of an ELU that writes in place is computed from its result; and what is written out as several
        operations, as a gated linear unit is in the canonical form, rounds several times.
        """
        text = repr(self)
        in_place = [f"kind='{kind}', form='in place'" for kind in ("elu", "selu", "celu")]
        return not any(part in text for part in [*in_place, *(["written out", "Glu"] if canonical else [])])

    def is_per_sample(self) -> bool:
        """Whether, in eval, no sample's outputs depend on the others in its batch."""
        return "track=False" not in repr(self)

    def inputs(self, size: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of a batch."""
        generator = torch.Generator().manual_seed(seed + 1000)
        shapes = {"none": [], "image": [IMAGE], "vector": [(_VECTOR,)]}[self.second]
        return tuple(torch.randn(size, *shape, generator=generator) for shape in (IMAGE, *shapes))

    def build(self, seed: int | None = None) -> nn.Module:
        """The network with weights, norms and running statistics of ``seed``."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed if seed is None else seed)
            model = _Module(self)
            for module in model.modules():
                _spread(module)
        return model.eval()


def _spread(module: nn.Module) -> None:
    """Give a norm other numbers than those that it starts from."""
    with torch.no_grad():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)):
                if name in ("weight", "running_var"):
                    value.uniform_(0.5, 1.5)
                elif name in ("bias", "running_mean"):
                    value.normal_(0, 0.3)


class _Module(nn.Module):
    """What a specification describes."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        made: Made = {}
        shapes, self.network, head = network.shapes(), network, network.head
        self.blocks = nn.ModuleList(b.build(s, made) for b, s in zip(network.blocks, shapes, strict=False))
        if network.second == "image":
            self.side = nn.Conv2d(IMAGE[0], shapes[1][0], 1)
        elif network.second == "vector":
            self.side = nn.Linear(_VECTOR, shapes[1][0])
        width = math.prod(shapes[-1]) if head.flat else shapes[-1][0]
        self.hidden = nn.Identity() if head.activation is None else nn.Linear(width, 6)
        self.norm = nn.BatchNorm1d(6) if head.activation is not None and head.norm else nn.Identity()
        self.act: Any = nn.Identity() if head.activation is None else head.activation.build(made, 6)
        self.head = nn.Linear(width if head.activation is None else 6, 3)

    def forward(self, x: Tensor, second: Tensor | None = None) -> Any:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0 and second is not None:
                x = self._combined(x, second)
        y = x.flatten(1) if self.network.head.flat else x.mean((2, 3))
        logits = self.head(self.act(self.norm(self.hidden(y))))
        match self.network.head.output:
            case "tuple":
                return logits, x
            case "list":
                return [x, logits]
            case "dict":
                return {"logits": logits, "features": x}
            case "named":
                return Pair(logits, x)
            case "record":
                return Record(logits, x)
        return logits

    def _combined(self, x: Tensor, second: Tensor) -> Tensor:
        if second.dim() == 2:
            return x * self.side(second)[:, :, None, None]
        return x + nn.functional.interpolate(self.side(second), x.shape[2:], mode="nearest")
