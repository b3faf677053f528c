"""What keeps a model from being captured, found out before torch.export is asked."""

from __future__ import annotations

import keyword
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from autorep_fx.errors import UnsupportedModelError
from autorep_fx.passes.captured import CapturedModule

__all__ = ["check_capturable"]

# What an fx.GraphModule sets on itself, on top of its class's attributes.
_OWN = frozenset({"graph", "meta", "code"})


def check_capturable(model: nn.Module) -> None:
    """Refuse a model that no capture could take.

    1. Scripted and traced modules have no Python code.
    2. Weights need values: those of lazy modules and on the meta device have none.
    3. Names that a captured module has for itself, at the top, and Python's keywords, anywhere, cannot be attributes
       of the graph that is captured.

    Raises:
        UnsupportedModelError: With every obstacle.
    """
    found, fixes = [], []
    for look, fix in _LOOKS:
        texts = look(model)
        if texts:
            found += texts
            fixes.append(fix)
    if found:
        raise UnsupportedModelError(found, fix=" ".join(fixes))


def _scripted(model: nn.Module) -> list[str]:
    found = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in found if not any(name.startswith(f"{o}." if o else "") for o in found if o != name)]
    return [f"{name or 'the model'}: a scripted or traced module has no Python code to capture" for name in outermost]


def _uninitialised(model: nn.Module) -> list[str]:
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    return [f"{name}: its module was never called, so that it has no shape and no values" for name in lazy]


def _on_meta(model: nn.Module) -> list[str]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    found = [name for name, tensor in tensors if tensor.is_meta]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return [f"{found[0]}{more}: tensors on the meta device have no values"] if found else []


def _names(model: nn.Module) -> list[str]:
    taken = (set(dir(CapturedModule)) | _OWN) - set(dir(nn.Module))
    own = [name for name, _ in (*model.named_children(), *model.named_parameters(), *model.named_buffers())]
    found = [
        f"the attribute {name!r} has a name that a captured graph uses for itself" for name in own if name in taken
    ]
    tensors = (*model.named_parameters(), *model.named_buffers())
    parts = {part: name for name, _ in tensors for part in name.split(".") if keyword.iskeyword(part)}
    return found + [f"{name}: {part!r} is a keyword of Python" for part, name in parts.items()]


_LOOKS: tuple[tuple[Callable[[nn.Module], list[str]], str], ...] = (
    (_scripted, "Pass the nn.Module that it was made from."),
    (_uninitialised, "Call the model once on an example before it is compiled."),
    (_on_meta, "Load its weights first: model.to_empty(device='cpu') and load_state_dict."),
    (_names, "Rename the attribute, or wrap the model in another module where the name is at its top."),
)
