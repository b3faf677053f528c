"""Which settings hold for which site: exact names and globs, later entries win."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from autorep_fx.config import SiteConfig, TransformConfig
from autorep_fx.errors import ConfigError, did_you_mean
from autorep_fx.sites import Site

__all__ = ["settings_by_site"]


def settings_by_site(config: TransformConfig, sites: Sequence[Site]) -> dict[str, SiteConfig]:
    """The settings of every site, with granularity and degree filled in.

    Raises:
        ConfigError: A pattern matches no site, with the nearest names; or it sets gates on a site that cannot
            have any, with the reason.
    """
    result = {
        site.name: SiteConfig(granularity=config.gates.granularity, degree=config.polynomials.degree) for site in sites
    }
    problems = []
    for pattern, wanted in config.sites.items():
        matched = [site for site in sites if site.name == pattern or fnmatchcase(site.name, pattern)]
        if not matched:
            problems.append(f"{pattern!r} matches no site.{did_you_mean(pattern, list(result))}")
        for site in matched:
            if not site.gateable and site.name == pattern and wanted.mode != "ignore":
                problems.append(f"{pattern!r} cannot be gated: {site.reason}.")
            result[site.name] = result[site.name].model_copy(
                update=wanted.model_dump(exclude_unset=True, exclude_none=True)
            )
    if problems:
        raise ConfigError(
            "Settings of single sites do not fit the model:\n" + "\n".join(f"  {p}" for p in problems),
            fix="Use names that autorep_fx.inspect(model, example_inputs) prints, or globs such as 'layer1.*'. "
            f"Sites: {', '.join(result) or 'none'}.",
        )
    return result
