"""Reference architectures, counted as the papers count them, and small data readers.

Importing this package imports no torch: a constructor is looked up when it is first needed. The readers
are in `autorep_fx.models_zoo.data`.
"""

from __future__ import annotations

__all__ = ["MODELS", "create", "input_shape"]

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

from autorep_fx.models_zoo._options import check_positive

if TYPE_CHECKING:
    from torch import nn


class _Entry(NamedTuple):
    """Where a constructor is, and the defaults of its two options that decide the input's shape."""

    path: str
    in_channels: int
    image_size: int


_ENTRIES = {
    "resnet18": _Entry("autorep_fx.models_zoo.resnet:resnet18", 3, 32),
    "resnet20": _Entry("autorep_fx.models_zoo.resnet:resnet20", 3, 32),
    "wide_resnet22_8": _Entry("autorep_fx.models_zoo.wide_resnet:wide_resnet22_8", 3, 32),
    "vgg16_bn": _Entry("autorep_fx.models_zoo.vgg:vgg16_bn", 3, 32),
    "lenet": _Entry("autorep_fx.models_zoo.lenet:lenet", 1, 28),
    "digits_resnet": _Entry("autorep_fx.models_zoo.resnet:digits_resnet", 1, 8),
}

# Every constructor takes these, so they can be checked without importing torch.
_COMMON_OPTIONS = frozenset({"num_classes", "in_channels", "image_size"})


class _Constructors(Mapping[str, Callable[..., "nn.Module"]]):
    """The constructors by name; a value is imported when it is asked for."""

    def __getitem__(self, name: str) -> Callable[..., nn.Module]:
        module, _, function = _ENTRIES[name].path.partition(":")
        return cast("Callable[..., nn.Module]", getattr(importlib.import_module(module), function))

    def __iter__(self) -> Iterator[str]:
        return iter(_ENTRIES)

    def __len__(self) -> int:
        return len(_ENTRIES)


MODELS: Mapping[str, Callable[..., nn.Module]] = _Constructors()
"""Constructor by model name."""


def create(name: str, **kwargs: object) -> nn.Module:
    """Build a freshly initialised model.

    Args:
        name: A key of `MODELS`.
        **kwargs: Options of that constructor; all take `num_classes`, `in_channels` and `image_size`.

    Raises:
        ValueError: Unknown name, unknown option, or an option value that the constructor refuses.
    """
    _entry(name)
    _check_options(name, kwargs)
    return MODELS[name](**kwargs)


def input_shape(name: str, **kwargs: object) -> tuple[int, ...]:
    """Return the shape (C, H, W) of one input sample, without building the model.

    Args:
        name: A key of `MODELS`.
        **kwargs: The same options as for `create`.

    Raises:
        ValueError: Unknown name, unknown option, or a size that is no positive integer.
    """
    entry = _entry(name)
    _check_options(name, kwargs)
    channels = kwargs.get("in_channels", entry.in_channels)
    side = kwargs.get("image_size", entry.image_size)
    check_positive(in_channels=channels, image_size=side)
    return cast("tuple[int, ...]", (channels, side, side))


def _entry(name: str) -> _Entry:
    try:
        return _ENTRIES[name]
    except KeyError:
        raise ValueError(f"Unknown model {name!r}.{_nearest(name, _ENTRIES)}") from None


def _check_options(name: str, options: Mapping[str, object]) -> None:
    if options.keys() <= _COMMON_OPTIONS:
        return
    accepted = list(inspect.signature(MODELS[name]).parameters)
    for option in options:
        if option not in accepted:
            raise ValueError(f"Model {name!r} takes no option {option!r}.{_nearest(option, accepted)}")


def _nearest(given: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{hint} Known: {', '.join(names)}."
