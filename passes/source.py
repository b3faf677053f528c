"""Where in the user's code a node comes from, and what its call site is called."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import torch
from torch import fx

__all__ = ["call_name", "is_library", "location", "owners", "scope"]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_STDLIB = sysconfig.get_paths()["stdlib"] + "/"
_SITE = sysconfig.get_paths()["purelib"]


def is_library(file: str) -> bool:
    """Whether a source file is torch's, Python's or this package's, and not the user's."""
    if file.startswith((_TORCH, _OWN, "<")):
        return True
    return file.startswith(_STDLIB) and not file.startswith(_SITE)


def location(node: fx.Node) -> str | None:
    """``path/file.py:line`` of the innermost frame outside torch.

    None where there is none: a model that is an ``nn.Sequential`` has its calls inside torch alone.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if not file.startswith((_TORCH, "<"))]
    return f"{own[-1][0]}:{own[-1][1]}" if own else None


def scope(node: fx.Node) -> tuple[str, str]:
    """Path and class of the module whose ``forward`` made the call: ``("layer1.0.relu", "torch.nn…ReLU")``."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "", ""
    path, owner = list(stack.values())[-1]
    return str(path), _qualified(owner)


def call_name(node: fx.Node, kind: str) -> str:
    """What a call is called before repeated names are numbered: the path of its activation module, or ``path.kind``."""
    path, owner = scope(node)
    return path if path and owner.startswith("torch.nn.modules.activation") else f"{path}.{kind}".lstrip(".")


def owners(node: fx.Node) -> tuple[str, ...]:
    """Qualified class names of the modules around the call, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(_qualified(owner) for _, owner in stack.values())


def _qualified(owner: str | type) -> str:
    return owner if isinstance(owner, str) else f"{owner.__module__}.{owner.__qualname__}"
