"""What each training method sets where the settings say nothing: the published recipes, and this project's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["METHODS", "with_method_defaults"]

#: Method → section → key → value. Sources: METHODS.md of the design; papers as named.
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "default": {},
    # AutoReP (arXiv 2308.10134): scores from U(0, 1), one Adam for everything, no schedule of the budget, λ from 80
    # to 240 on the density; fits refreshed for the first 500 of some 80,000 steps, here for the first fifth.
    "autorep": {
        "gates": {"init": "random", "band": 0.003},
        "polynomials": {"refresh_until": 0.2},
        "training": {"penalty": 160.0, "weight_decay": 0.0},
        "finetune": {"norm_batches": 0},
    },
    # SNL (arXiv 2202.02340): soft masks from 1, an L1 weight of 1e-5, x itself in place of ReLU, fine-tuning by SGD.
    "snl": {
        "gates": {"init": "ones"},
        "polynomials": {"degree": 1, "form": "identity"},
        "training": {"penalty": 1e-5, "gate_lr": 1e-3, "weight_decay": 0.0},
        "finetune": {"optimizer": "sgd", "norm_batches": 0},
    },
    "layerwise": {},
    "random": {"gates": {"init": "random"}},
    "magnitude": {},
}


def with_method_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of their method filled in where they say nothing.

    Args:
        given: Settings as written: sections as mappings or as validated sections.
    """
    result = dict(given)
    method = (_as_written(given.get("training")) or {}).get("method")
    for name, defaults in METHODS.get(str(method), {}).items():
        section = _as_written(given.get(name))
        if section is not None:
            result[name] = {**defaults, **section}
    return result


def _as_written(section: Any) -> Mapping[str, Any] | None:
    """What is said in a section; None for what is no section, which is refused elsewhere."""
    if isinstance(section, BaseModel):
        return section.model_dump(exclude_unset=True)
    if section is None:
        return {}
    return section if isinstance(section, Mapping) else None
