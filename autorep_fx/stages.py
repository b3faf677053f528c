"""The public stages, each with its spec: what :func:`autorep_fx.transform` composes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autorep_fx.budget import Budget
from autorep_fx.compiled import Compiled
from autorep_fx.config import DEFAULT_PASSES, PassConfig, TransformConfig
from autorep_fx.config_io import parse_config
from autorep_fx.cost import resolve
from autorep_fx.cost_meter import CostMeter
from autorep_fx.errors import ConfigError, InvariantError
from autorep_fx.export.verify import Verification
from autorep_fx.lowering import lower, require_projected
from autorep_fx.passes.capture import capture_graph
from autorep_fx.passes.capture_check import check_as_model
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.catalogue import build_pipeline
from autorep_fx.passes.exported import is_exported, module_of
from autorep_fx.passes.fingerprint import fingerprint
from autorep_fx.passes.graphs import sites_of
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.insert_gates import InsertGatesPass
from autorep_fx.passes.site_settings import SiteSettingsPass
from autorep_fx.passes.sizes import shape_notes
from autorep_fx.passes.stages import check_canonical, check_captured, check_equal, tolerance_of
from autorep_fx.passes.substitute import SubstitutePass
from autorep_fx.passes.training_differences import training_differences
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.trainer import GateTrainer

__all__ = [
    "calibrate", "canonicalize", "capture", "export", "finetune", "lower", "prepare", "project", "select_sites",
    "train_gates",
]  # fmt: skip

logger = logging.getLogger(__name__)


def capture(
    model: nn.Module | torch.export.ExportedProgram, example_inputs: Any, *, verification: str = "numeric",
    config: TransformConfig | Mapping[str, Any] | None = None,
) -> CapturedModule:  # fmt: skip
    """Capture a model; true afterwards: a functional ATen graph with a dynamic batch that equals the model in eval.

    What it does otherwise in training is found out too: :attr:`CapturedModule.training_differences`.

    Args:
        model: The trained model, or an exported program with a dynamic batch; it is copied, never changed.
        example_inputs: A tensor ``(N, ...)``, a tuple of positional or a mapping of keyword arguments.
        verification: ``structure``, ``numeric`` (outputs compared at batches 2 and 3, at other sizes where they are
            free, and in training) or ``off``.
        config: Settings, of which ``capture`` says what of the inputs' shapes may vary.

    Raises:
        UnsupportedModelError: It cannot be captured; every obstacle is listed.
        DataError: The model cannot take the example inputs.
        InvariantError: The captured graph differs from the model.
    """
    inputs = ExampleInputs.of(example_inputs, parse_config(config).capture, getattr(model, "forward", None))
    captured = capture_graph(model, inputs)
    if verification != "off":
        check_captured(captured)
    if verification == "numeric" and is_exported(model):
        check_as_model(captured, module_of(model), inputs)
    elif verification == "numeric" and not isinstance(model, CapturedModule):
        assert isinstance(model, nn.Module)
        check_as_model(captured, copy.deepcopy(model).eval(), inputs)
        captured.training_differences = tuple(training_differences(model, captured, inputs))
    return captured


def canonicalize(
    captured: CapturedModule, *, passes: Iterable[PassConfig] | None = None, example_inputs: Any = None,
    verification: str = "numeric",
) -> CapturedModule:  # fmt: skip
    """Name the sites; true afterwards: one operation per activation kind, and a site on all that compares.

    Args:
        captured: A captured module; changed in place and returned.
        passes: The passes of the stage; the default is ``canonicalize`` alone.
        example_inputs: For the numeric check; without them only the structure is checked.
        verification: ``structure``, ``numeric`` or ``off``.

    Raises:
        InvariantError: The spec does not hold, or outputs changed.
    """
    numeric = verification == "numeric" and example_inputs is not None
    before = copy.deepcopy(captured) if numeric else captured
    chosen = [PassConfig(name=name) for name in DEFAULT_PASSES["canonicalize"]] if passes is None else list(passes)
    build_pipeline("canonicalize", chosen)(captured)
    if verification != "off":
        check_canonical(captured)
    if numeric:
        inputs = ExampleInputs.of(example_inputs)
        check_equal("canonicalize", captured, before, inputs, tolerance_of(captured), sizes=captured.sizes)
    return captured


def select_sites(
    model: nn.Module | torch.export.ExportedProgram,
    inputs: ExampleInputs,
    settings: TransformConfig,
    *,
    verification: str | None = None,
) -> tuple[CapturedModule, list[str]]:  # fmt: skip
    """From a model to the canonical graph that settings ask for: substituted, its gateable sites settled.

    Args:
        model: The model, or a module that :func:`capture` returned.
        inputs: Example inputs.
        settings: Settings.
        verification: Another level than that of the settings.

    Returns:
        The graph, and notes on what was substituted.

    Raises:
        ConfigError: Substitutions or settings of sites do not fit the model.
    """
    level = settings.verification if verification is None else verification
    substitute = SubstitutePass(settings.substitute)  # a name that nothing can become is told before any work
    captured = capture(model, inputs, verification=level)
    canonical = canonicalize(
        captured, passes=settings.passes_of("canonicalize"), example_inputs=inputs, verification=level
    )
    notes = []
    if settings.substitute:
        given = _counted(canonical)
        substitute(canonical)
        if level != "off":
            check_canonical(canonical)
        notes = [f"{name}: {text}" for name, text in substitute.changed.items()]
        notes.append(f"the model as given compares {given:,} times, with these substitutions {_counted(canonical):,}")
    SiteSettingsPass(settings)(canonical)
    return canonical, notes


def _counted(canonical: CapturedModule) -> int:
    return sum(site.comparisons for site in sites_of(canonical))


def prepare(
    model: nn.Module | torch.export.ExportedProgram,
    budget: Any,
    *,
    example_inputs: Any,
    config: TransformConfig | dict[str, Any] | None = None,
) -> GatedModel:
    """Gate a model, for users who train it in their own loop.

    True afterwards: each gateable site is one gated activation, everything is kept, and outputs and gradients are
    those of the model (with its substitutions; and without the sites that settings replace for good).

    Args:
        model: The trained model, or a module that :func:`capture` returned.
        budget: A :class:`Budget` or any of its spellings.
        example_inputs: As for :func:`capture`.
        config: Settings.

    Raises:
        BudgetInfeasibleError: The budget is below what no gate can remove.
        NoSitesError: Nothing can be gated.
        ConfigError: Settings do not fit the model.
    """
    settings = parse_config(config)
    inputs = ExampleInputs.of(example_inputs, settings.capture, getattr(model, "forward", None)).beside(model)
    wanted = Budget.parse(budget)
    meter = _meter(wanted, settings)
    settings, linear = (settings, "") if meter is None else meter.adapted(settings)
    canonical, notes = select_sites(model, inputs, settings)
    numeric = settings.verification == "numeric"
    before = copy.deepcopy(canonical) if numeric else canonical
    digest = fingerprint(canonical)
    allowance = resolve(wanted, sites_of(canonical))  # a budget that cannot be met is told before gates are made
    InsertGatesPass(settings)(canonical)
    gated = GatedModel(canonical, allowance, settings, inputs, fingerprint=digest, meter=meter)
    gated.notes = [*([linear] if linear else []), *notes, *shape_notes(canonical, inputs)]
    if numeric and not any(gate.pinned == "replaced" for gate in gated.gates.values()):
        check_equal("prepare", gated, before, inputs, 0.0, sizes=canonical.sizes)
    return gated


def _meter(budget: Budget, settings: TransformConfig) -> CostMeter | None:
    """What measures a budget in bytes, messages or seconds.

    Raises:
        ConfigError: Single sites have budgets in comparisons beside it.
    """
    if not budget.is_cost:
        return None
    own = [name for name, site in settings.sites.items() if site.budget is not None]
    if own:
        raise ConfigError(
            "Sites with a budget of their own go with a budget in comparisons, not with what a query costs.",
            received=f"{budget}; budgets of {', '.join(own)}",
            fix="Use mode: keep or replace for these sites, or state the model's budget in comparisons.",
        )
    return CostMeter(budget, settings)


def calibrate(gated: GatedModel, batches: Any, *, seed: int = 0) -> GatedModel:
    """Fit the polynomials in order; true afterwards: outputs are finite even with everything replaced.

    Args:
        gated: A prepared model; changed in place and returned.
        batches: Training batches ``(inputs, targets)``, or example inputs.
        seed: Of the estimate that starts the scores.

    Raises:
        NonFiniteError: No polynomials give finite outputs.
    """
    gated.calibrate(batches, seed=seed)
    return gated


def train_gates(trainer: GateTrainer) -> GatedModel:
    """Train gates, polynomials and weights; true afterwards: no more is kept than the schedule's end allows.

    Raises:
        NonFiniteError: The loss is NaN or infinite.
    """
    trainer.train_gates()
    return trainer.model


def project(gated: GatedModel) -> GatedModel:
    """Freeze the gates within the budget; true afterwards: the exactness rule.

    Raises:
        InvariantError: The rule does not hold.
    """
    if not gated.is_projected:
        gated.project()
    if gated.unspent < 0:
        raise InvariantError(f"After stage 'project' {-gated.unspent} comparisons are kept above the budget.")
    return gated


def finetune(trainer: GateTrainer) -> GatedModel:
    """Train weights and polynomials with frozen gates; true afterwards: the gates are what they were.

    Raises:
        NotProjectedError: The gates are not projected.
        InvariantError: A gate changed.
    """
    require_projected(trainer.model)
    before = {name: gate.kept.clone() for name, gate in trainer.model.gates.items()}
    trainer.finetune()
    for name, gate in trainer.model.gates.items():
        if not torch.equal(gate.kept.cpu(), before[name].cpu()):
            raise InvariantError(f"After stage 'finetune' the gates of {name} differ from before.")
    return trainer.model


def export(compiled: Compiled, path: Path | str) -> Verification:
    """Write the ONNX file; true afterwards: checker clean, outputs and counts equal the lowered module's.

    Raises:
        ParityError: They are not.
        OutputError: The file cannot be written.
    """
    return compiled.export(path)
