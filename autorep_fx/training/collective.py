"""What the processes of one training tell each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from autorep_fx.gates.collective import is_parallel

__all__ = ["any_of", "broadcast_together"]


@torch.no_grad()
def broadcast_together(tensors: Iterable[Tensor]) -> None:
    """Give every process the values that the first one has; one message per dtype."""
    if not is_parallel():
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for dtype, group in by_dtype.items():
        _broadcast(group, torch.uint8 if dtype == torch.bool else dtype)


def _broadcast(group: Sequence[Tensor], dtype: torch.dtype) -> None:
    flat = torch.cat([tensor.detach().flatten().to(dtype) for tensor in group])
    dist.broadcast(flat, src=0)
    for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether any process has the flag."""
    if not is_parallel():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)
