"""The templates of all pages, in one environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from autorep_fx.report import _text

__all__ = ["render_template"]


def render_template(name: str, *, filters: dict[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """The text of a page; the same values give the same text.

    Markup in strings is escaped, and a name that a template uses and nobody gave is an error.

    Args:
        name: File name of the template, beside this module.
        filters: Filters beside ``count``.
        values: What the template shows.
    """
    environment = Environment(
        loader=PackageLoader("autorep_fx", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update({"count": _text.count, **(filters or {})})
    return environment.get_template(name).render(**values)
