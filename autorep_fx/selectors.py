"""How settings name sites: by name, glob, kind or module class."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from autorep_fx.errors import did_you_mean
from autorep_fx.sites import Site

__all__ = ["matching", "no_match"]

_BY = ("name", "kind", "class")


def matching(pattern: str, sites: Sequence[Site], *, first: str = "name") -> list[Site]:
    """The sites that a pattern selects, in execution order.

    ``name:``, ``kind:`` and ``class:`` before the pattern say what it is compared with: the site's name, its kind, or
    the class of a module around the call, bare (``SqueezeExcite``) or qualified (``timm.layers.SqueezeExcite``).
    Without, these are tried in that order, and the first that gives a site decides. All of them take globs
    (``layer1.*``). What matches nothing else may be the name of a call that was merged into a site.

    Args:
        pattern: The pattern.
        sites: Sites to choose from.
        first: What a pattern without a prefix is tried as before all else.
    """
    by, colon, rest = pattern.partition(":")
    if colon and by in _BY:
        return _select(by, rest, sites) or (_select("merged", rest, sites) if by == "name" else [])
    for by in sorted(_BY, key=lambda name: name != first):
        found = _select(by, pattern, sites)
        if found:
            return found
    return _select("merged", pattern, sites)


def no_match(pattern: str, sites: Sequence[Site]) -> str:
    """What to say of a pattern that selects nothing, with the nearest names, kinds and classes."""
    by, colon, rest = pattern.partition(":")
    chosen, text = ((by,), rest) if colon and by in _BY else (_BY, pattern)
    known = {name: None for site in sites for by in chosen for name in _texts(by, site)}
    return f"{pattern!r} matches no site.{did_you_mean(text, list(known))}"


def _select(by: str, pattern: str, sites: Sequence[Site]) -> list[Site]:
    return [site for site in sites if any(text == pattern or fnmatchcase(text, pattern) for text in _texts(by, site))]


def _texts(by: str, site: Site) -> tuple[str, ...]:
    if by == "name":
        return (site.name,)
    if by == "kind":
        return (site.kind,)
    if by == "merged":
        return site.merged
    return tuple(text for owner in site.owners for text in (owner, owner.rpartition(".")[2]))
