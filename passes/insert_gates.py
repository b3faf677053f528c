"""Insert gates: each gateable site becomes one :class:`GatedActivation`, with everything kept."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep_fx.config import SiteConfig, TransformConfig
from autorep_fx.errors import NoSitesError
from autorep_fx.gates import GatedActivation, GatedPool
from autorep_fx.gates.operation import Operation
from autorep_fx.passes.graphs import SITE_KEY, finish, site_nodes, sites_of
from autorep_fx.passes.infra import Pass, PassResult
from autorep_fx.passes.pools import AVERAGES, average_call
from autorep_fx.passes.site_settings import own_allowance, settings_by_site
from autorep_fx.polynomials import FitLimits
from autorep_fx.sites import Site

__all__ = ["InsertGatesPass", "gate_of", "gates_of"]

aten = torch.ops.aten
_HOLDER = "autorep_gates"


class InsertGatesPass(Pass):
    """Replaces each gateable site with a call of its own :class:`GatedActivation`.

    1. A site whose settings say ``keep`` or ``replace`` is gated with everything or nothing kept, for good.
    2. Max pooling that the settings gate becomes a :class:`GatedPool`, which decides per channel.
    3. Directly after a batch norm the polynomial starts from that norm's scale and shift, elsewhere from N(0, 1):
       a start for users who do not calibrate.

    Args:
        config: Granularity, degree, band and per-site settings.
    """

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def call(self, module: fx.GraphModule) -> PassResult:
        """Insert the gates.

        Raises:
            ConfigError: Settings name sites that do not exist.
            NoSitesError: Nothing is left to gate.
        """
        settings = settings_by_site(self.config, sites_of(module))
        modified = False
        for node, site in list(site_nodes(module)):
            if site.gateable:
                self._insert(module, node, settings[site.name])
                modified = True
        if not gates_of(module):
            reasons = "\n".join(f"  {s.name} ({_place(s)}): {s.reason}" for s in sites_of(module))
            ignored = any(settings[s.name].mode == "ignore" for s in sites_of(module))
            raise NoSitesError(
                "The model has no activation that gates could replace" + (f":\n{reasons}" if reasons else "."),
                fix="Take mode: ignore off some of them."
                if ignored
                else "Pass a model with activations: those of docs/models.md, as modules or functions.",
            )
        finish(module)
        return PassResult(module, modified)

    def _insert(self, module: fx.GraphModule, node: fx.Node, settings: SiteConfig) -> None:
        gate = self._gate(module, node, settings)
        _start_from_norm(module, node, gate)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(_register(module, gate.site.name, gate), (node.args[0], *_parameters(node)))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)

    def _gate(self, module: fx.GraphModule, node: fx.Node, settings: SiteConfig) -> GatedActivation:
        site, polynomials = node.meta[SITE_KEY], self.config.polynomials
        options: dict[str, Any] = {
            "granularity": settings.granularity, "degree": settings.degree, "band": self.config.gates.band,
            "c2_scale": polynomials.c2_scale, "limits": FitLimits(polynomials.sigma_floor, polynomials.c2_bound),
            "fit_arguments": tuple(a for a in node.args[1:] if isinstance(a, (int, float))),
            "pinned": {"keep": "kept", "replace": "replaced"}.get(settings.mode),
            "own_allowed": own_allowance(settings.budget, site), "like": _like(module, node),
            "identity": polynomials.form == "identity",
        }  # fmt: skip
        if site.kind not in AVERAGES:
            parameter = next((_parameter(module, value) for value in _parameters(node)), None)
            return GatedActivation(site, _function(node), parameter=parameter, **options)
        target, arguments = average_call(node)
        by_channel = {"granularity": "site" if settings.granularity == "site" else "channel"}
        return GatedPool(site, _function(node), average=Operation.of(target, arguments), **{**options, **by_channel})

    def ensures(self, result: PassResult) -> None:
        """No gateable site is left without a gate."""
        for node, site in site_nodes(result.module):
            if site.gateable and node.op != "call_module":
                raise ValueError(f"site {site.name} has no gate")


def gate_of(module: fx.GraphModule, node: fx.Node) -> GatedActivation | None:
    """The gate that a node calls."""
    found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, GatedActivation) else None


def gates_of(module: fx.GraphModule) -> dict[str, GatedActivation]:
    """Gates by site name, in execution order; also those that another call of the graph takes as an argument."""
    modules = dict(module.named_modules())
    nodes = (node for node in module.graph.nodes if node.op in ("call_module", "get_attr"))
    gates = (modules.get(str(node.target)) for node in nodes)
    return {gate.site.name: gate for gate in gates if isinstance(gate, GatedActivation)}


def _place(site: Site) -> str:
    return f"{site.kind}, {site.source}" if site.source else site.kind


def _parameters(node: fx.Node) -> list[fx.Node]:
    """Tensor arguments after the input, such as the slopes of a PReLU: the gate is called with them too."""
    return [value for value in node.args[1:] if isinstance(value, fx.Node)]


def _function(node: fx.Node) -> Operation:
    assert callable(node.target)
    return Operation.of(node.target, [v for v in node.args[1:] if not isinstance(v, fx.Node)], node.kwargs)


def _like(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """A tensor with the dtype of the site and the device of the model."""
    value = node.meta["val"]
    device = next((p.device for p in module.parameters()), value.device)
    return torch.empty(0, dtype=value.dtype, device=device)


def _register(module: fx.GraphModule, site: str, gate: GatedActivation) -> str:
    base = name = re.sub(r"\W", "_", site)
    if not hasattr(module, _HOLDER):
        module.add_module(_HOLDER, nn.Module())
    count = 2
    while hasattr(module.get_submodule(_HOLDER), name):
        name, count = f"{base}_{count}", count + 1
    path = f"{_HOLDER}.{name}"
    module.add_submodule(path, gate)
    return path


def _start_from_norm(module: fx.GraphModule, node: fx.Node, gate: GatedActivation) -> None:
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target is not aten.batch_norm.default:
        return
    scale, shift = source.args[1], source.args[2]
    if not all(isinstance(a, fx.Node) and a.op == "get_attr" for a in (scale, shift)) or gate.site.channel_axis != 0:
        return  # a norm without parameters of its own, or with computed ones
    assert isinstance(scale, fx.Node)
    assert isinstance(shift, fx.Node)
    gate.mean.copy_(_parameter(module, shift))
    gate.std.copy_(_parameter(module, scale).abs())
    gate.refit()


def _parameter(module: fx.GraphModule, node: fx.Node) -> Tensor:
    path, _, name = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(path), name)
    assert isinstance(value, Tensor)
    return value.detach()
