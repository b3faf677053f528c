"""Site settings: which settings hold for which site, and what they make of the sites before gates are inserted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from autorep_fx.budget import Budget
from autorep_fx.config import SiteConfig, TransformConfig
from autorep_fx.errors import BudgetError, ConfigError
from autorep_fx.passes.graphs import SITE_KEY, site_nodes, sites_of
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.pools import opened
from autorep_fx.selectors import matching, no_match
from autorep_fx.sites import Site

__all__ = ["SiteSettingsPass", "own_allowance", "settings_by_site"]


class SiteSettingsPass(Pass):
    """Settles which sites are gateable.

    1. A site whose settings say ``ignore`` is declined and becomes fixed.
    2. With ``gates.pools`` max pooling becomes gateable, where an average over the same windows exists.

    Args:
        config: Settings of gates and sites.
    """

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def call(self, module: fx.GraphModule) -> PassResult:
        """Mark the sites.

        Raises:
            ConfigError: Settings name sites that do not exist, or that cannot be gated.
        """
        modified = False
        if self.config.gates.pools:
            for node, site in list(site_nodes(module)):
                node.meta[SITE_KEY] = opened(node, site)
                modified = modified or node.meta[SITE_KEY] != site
        settings = settings_by_site(self.config, sites_of(module))
        for node, site in list(site_nodes(module)):
            if site.gateable and settings[site.name].mode == "ignore":
                node.meta[SITE_KEY] = site.declined("ignored by the settings")
                modified = True
        return PassResult(module, modified)


def settings_by_site(config: TransformConfig, sites: Sequence[Site]) -> dict[str, SiteConfig]:
    """The settings of every site, with granularity and degree filled in; later entries win.

    Raises:
        ConfigError: A pattern matches no site, with the nearest names; or it sets gates on a site that cannot
            have any, with the reason.
    """
    result = {
        site.name: SiteConfig(granularity=config.gates.granularity, degree=config.polynomials.degree) for site in sites
    }
    problems = []
    for pattern, wanted in config.sites.items():
        matched = matching(pattern, sites)
        if not matched:
            problems.append(no_match(pattern, sites))
        for site in matched:
            if not site.gateable and len(matched) == 1 and wanted.mode != "ignore":
                problems.append(f"{pattern!r} cannot be gated: {site.reason}.")
            given = wanted.model_dump(exclude_unset=True, exclude_none=True, mode="json")
            result[site.name] = SiteConfig.model_validate(
                {**result[site.name].model_dump(mode="json", exclude_none=True), **given}
            )
    if problems:
        raise ConfigError(
            "Settings of single sites do not fit the model:\n" + "\n".join(f"  {p}" for p in problems),
            fix="Use names that autorep_fx.inspect(model, example_inputs) prints, globs such as 'layer1.*', kinds such "
            f"as 'kind:silu', or module classes such as 'class:SqueezeExcite'. Sites: {', '.join(result) or 'none'}.",
        )
    return result


def own_allowance(budget: Budget | None, site: Site) -> int | None:
    """What a site with a budget of its own may keep, in nominal comparisons for one sample; None without one.

    Raises:
        BudgetError: It is more than the site has.
    """
    if budget is None:
        return None
    allowed = budget.of(site.comparisons)
    if allowed > site.comparisons:
        raise BudgetError(
            f"The budget of site {site.name} is above the {site.comparisons:,} comparisons that it has.",
            received=str(budget), fix="Give a fraction, or mode: keep.",
        )  # fmt: skip
    return allowed
