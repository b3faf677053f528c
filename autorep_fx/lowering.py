"""The stage ``lower``: from a projected gated model to a compiled one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from autorep_fx.amounts import write_amount
from autorep_fx.compiled import Compiled
from autorep_fx.config import PassConfig
from autorep_fx.cost import count_sites
from autorep_fx.cost.dependence import input_dependent
from autorep_fx.errors import BudgetInfeasibleError, ConfigError, InvariantError, NotProjectedError
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.catalogue import build_pipeline
from autorep_fx.passes.forms import note
from autorep_fx.passes.graphs import shared_copy, site_nodes
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.shapes import record_dtypes
from autorep_fx.passes.stages import check_equal, largest_difference, tolerance_of
from autorep_fx.plan import FixedSite, Plan, SitePlan
from autorep_fx.report.polynomials import measure_polynomials
from autorep_fx.training.cost_limit import Meter
from autorep_fx.training.gated_model import GatedModel

__all__ = ["lower", "make_plan", "require_projected"]

# Standard deviations from the mean beyond which a fit is no guide any more.
_FAR = 10.0
# Largest relative difference in float64 between forms that are the same function; deep networks amplify its rounding.
_EXACT = 1e-6
# What is left out in turn where rounding goes too far: nothing, what moves scales and shifts, all that reorders sums.
_LEFT_OUT = ((), ("absorb_affine",), ("absorb_affine", "drop_channels", "pack_channels", "merge_linear"))


def require_projected(gated: GatedModel) -> None:
    """Refuse a model whose gates are not projected.

    Raises:
        NotProjectedError: They are not.
    """
    if not gated.is_projected:
        raise NotProjectedError(
            "The gates are not projected onto the budget yet.",
            received=f"{gated.kept:,} gateable comparisons kept; the budget allows {gated.allowance.allowed:,}",
            fix="Call project() first.",
        )


def lower(gated: GatedModel, *, title: str = "model", consume: bool = False) -> Compiled:
    """Lower a projected model; true afterwards: no gate is left, and what compares is what the plan keeps.

    Args:
        gated: A projected model; it is copied, never changed, unless it is consumed.
        title: Name in reports.
        consume: Take over the tensors of ``gated``, which must not be used any more. That saves a copy of its weights.

    Raises:
        NotProjectedError: The gates are not projected.
        ConfigError: Sites are kept behind what became a constant.
        BudgetInfeasibleError: A query costs more than a budget in bytes, messages or seconds.
        InvariantError: Counts or outputs of the lowered module are not those of the gated model.
    """
    require_projected(gated)
    # Lowering works on one device; the compiled module is small work, and export needs the CPU anyway.
    gated = (gated if consume else copy.deepcopy(gated)).cpu().eval()
    inputs = gated.sample.to(device="cpu")
    warnings = _measure_ranges(gated, inputs)
    polynomials = measure_polynomials(gated, inputs)
    plan = make_plan(gated)
    weights = {k: v for k, v in gated.network.state_dict().items() if not k.startswith("autorep_gates.")}
    module = _lowered(gated, plan, inputs)
    if gated.meter is not None:
        plan = replace(plan, notes=(*plan.notes, _within_cost(gated, gated.meter, module)))
    return Compiled(
        module, plan, weights, gated.example.to(device="cpu"), gated.config, gated.sites,
        polynomials=polynomials, warnings=warnings, title=title,
    )  # fmt: skip


def _within_cost(gated: GatedModel, meter: Meter, module: CapturedModule) -> str:
    """Note what a query of the lowered module costs.

    Raises:
        BudgetInfeasibleError: More than the budget: the model has changed since it was projected.
    """
    budget, spent = gated.allowance.budget, meter.spent_lowered(module, gated.example.to(device="cpu"))
    if spent > budget.value:
        raise BudgetInfeasibleError(
            "The lowered model costs more than its budget: training after the projection changed what can be absorbed.",
            received=f"{write_amount(budget.kind, spent)}; the budget is {budget}",
            fix="Call gated.fit_to_cost() after the last training step, then lower().",
        )
    stated = write_amount(budget.kind, spent)
    return f"a query of one sample, after the set-up of its session, is predicted to cost {stated}"


def _lowered(gated: GatedModel, plan: Plan, inputs: ExampleInputs) -> CapturedModule:
    """The lowered graph; without absorption where that rounds worse than the rule of ``check_equal`` allows.

    Moving scales through a deep network is exact, but its rounding is multiplied by all that follows.

    Raises:
        ConfigError: Sites are kept behind what became a constant.
        InvariantError: Counts or outputs are not those of the gated model.
    """
    passes = gated.config.passes_of("lower")
    tried: list[list[PassConfig]] = []
    for left_out in _LEFT_OUT:
        chosen = [item for item in passes if item.name not in left_out]
        if chosen in tried:
            continue  # the pipeline has none of these
        tried.append(chosen)
        module = _lowered_by(chosen, gated, plan)
        if left_out:
            names = ", ".join(item.name for item in passes if item not in chosen)
            note(module, "all sites", f"lowered without {names}, with which outputs were rounded too far")
        if gated.config.verification != "numeric":
            return module
        try:
            check_equal("lower", module, gated, inputs, tolerance_of(module), sizes=module.sizes)
        except InvariantError as error:
            if not _exact_in_float64(chosen, gated, plan, inputs):
                raise
            rounded_too_far = error
        else:
            return module
    raise rounded_too_far


def _exact_in_float64(passes: Sequence[PassConfig], gated: GatedModel, plan: Plan, inputs: ExampleInputs) -> bool:
    """Whether passes are exact on a model, and only round more: anything else is a defect, which no form may hide.

    The model is lowered anew in float64, as weights that were rounded once are off by what its depth makes of that.
    """
    exact = copy.deepcopy(gated).double()
    record_dtypes(exact.network, torch.float64)
    wide = inputs.to(dtype=torch.float64)
    module = _lowered_by(passes, exact, plan)
    with torch.no_grad():
        return largest_difference(wide.call(module), wide.call(exact)) <= _EXACT


def _lowered_by(passes: Sequence[PassConfig], gated: GatedModel, plan: Plan) -> CapturedModule:
    module = shared_copy(gated.network)
    build_pipeline("lower", passes)(module)
    _check_dependence(module, plan)
    if gated.config.verification != "off":
        _check_lowered(module, plan)
    return module


def _check_dependence(module: CapturedModule, plan: Plan) -> None:
    """Refuse sites that are kept although all that reaches them is constant: they would compare nothing.

    Raises:
        ConfigError: With every such site.
    """
    dependent = input_dependent(module.graph.nodes)
    kept = {site.name for site in plan.sites if site.kept_elements} | {site.name for site in plan.fixed}
    lowered = {site.name: node in dependent for node, site in site_nodes(module)}
    constant = [name for name in kept if not lowered.get(name, True)]
    if constant:
        raise ConfigError(
            "Sites are kept although nothing of the input reaches them: everything before them became a constant.",
            received=f"{', '.join(sorted(constant))} behind polynomials of degree 0",
            fix="Use degree 1 (polynomials: {degree: 1}), or keep some of the sites before them.",
        )


def _check_lowered(module: CapturedModule, plan: Plan) -> None:
    left = [node.name for node in module.graph.nodes if node.op == "call_module"]
    counted = sum(count_sites(module).values())
    problems = [f"{name} is still a module" for name in left]
    if counted != plan.comparisons:
        problems.append(f"the graph compares {counted:,} times, the plan says {plan.comparisons:,}")
    if problems:
        raise InvariantError("After stage 'lower' these do not hold:\n" + "\n".join(f"  {p}" for p in problems))


def _measure_ranges(gated: GatedModel, inputs: ExampleInputs) -> tuple[str, ...]:
    """Record the range that each site sees with the final weights; warn where it leaves the fitted one."""
    for gate in gated.gates.values():
        gate.mode = "measure"
    with torch.no_grad():
        inputs.call(gated)
    far = []
    for name, gate in gated.gates.items():
        gate.mode = "run"
        if gate.reach > _FAR and not bool(gate.kept.all()):
            low, high = gate.input_range.tolist()
            far.append((gate.reach, f"{name}: {gate.reach:.0f} standard deviations, inputs {low:.3g} to {high:.3g}"))
    if not far:
        return ()
    worst = "; ".join(text for _, text in sorted(far, reverse=True)[:3])
    where = f"At {len(far)} of {len(gated.gates)} sites inputs reach more than {_FAR:.0f} standard deviations"
    what = f"from their channel's mean, where a polynomial is no guide (worst: {worst})"
    return (f"{where} {what}. If accuracy suffers, set degree 1 there or calibrate on more samples",)


def make_plan(gated: GatedModel) -> Plan:
    """The plan of a projected model."""
    sites = []
    for gate in gated.gates.values():
        low, high = gate.input_range.tolist()
        site = gate.site
        sites.append(
            SitePlan(
                site.name, site.kind, site.shape, gate.granularity, gate.degree, site.comparisons_per_element,
                gate.kept.cpu().numpy(), gate.coefficients.detach().double().cpu().numpy(),
                None if low != low else (low, high),
            )
        )  # fmt: skip
    fixed = tuple(FixedSite(s.name, s.kind, s.comparisons, s.reason or "") for s in gated.sites if not s.gateable)
    notes = tuple(f"{name}: {text}" for name, text in gated.fallbacks.items()) + tuple(gated.notes)
    return Plan(
        gated.allowance.budget, gated.allowance.allowed, tuple(sites), fixed, gated.fingerprint, gated.calibrated_on,
        notes,
    )  # fmt: skip
