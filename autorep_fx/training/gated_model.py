"""The gated model: what ``prepare`` returns, for the built-in trainer and for users with their own loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autorep_fx.config import TransformConfig
from autorep_fx.cost.resolve import Allowance
from autorep_fx.errors import ConfigError
from autorep_fx.gates import GatedActivation
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.graphs import sites_of
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.passes.insert_gates import gates_of
from autorep_fx.passes.pots import Pot, check_shares, pots
from autorep_fx.passes.project_budget import ProjectBudgetPass
from autorep_fx.sites import Site
from autorep_fx.training.batches import collect_samples, set_epoch
from autorep_fx.training.calibration import fit_polynomials
from autorep_fx.training.cost_limit import Meter, open_sites, project_within
from autorep_fx.training.methods import make_method
from autorep_fx.training.methods.scores import free_gates, set_by_rank

__all__ = ["GatedModel"]

# Share of the comparisons whose replacement changes what the sites after them get too much to wait.
_MANY_FLIPS = 0.02
_PREPARED, _CALIBRATED, _PROJECTED = 0, 1, 2


class GatedModel(nn.Module):
    """A model whose activations are gated, to be trained, projected and lowered.

    ``train()``, ``eval()``, ``to()``, ``copy.deepcopy`` and ``state_dict()`` behave as for any module; the state
    dict holds scores, gate states, moments and the phase.

    Args:
        network: The captured graph with gates inserted.
        allowance: The resolved budget.
        config: Settings.
        example: The example inputs that the model was captured with.
        fingerprint: Digest of the canonical graph.
        meter: What measures a budget in bytes, messages or seconds; None for one in comparisons.

    Raises:
        BudgetInfeasibleError: Single sites are to keep more than the budget allows.

    Attributes:
        allowance: The resolved budget. What a cost allows is settled by the calibration, and again by the projection.
        sample: The inputs that the model was calibrated on; the example inputs before.
        notes: What was done of the compiler's own accord, for the result.
        calibrated_on: What the polynomials were fitted on.
        fallbacks: Site name → what calibration had to do there, and why.
    """

    def __init__(
        self, network: CapturedModule, allowance: Allowance, config: TransformConfig, example: ExampleInputs, *,
        fingerprint: str, meter: Meter | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.meter = meter
        self.network = network
        self.allowance = allowance
        self.config = config
        self.example = example
        self.sample = example
        self.fingerprint = fingerprint
        self.notes: list[str] = []
        self.calibrated_on = "the batch norms before the sites, N(0, 1) elsewhere"
        self.fallbacks: dict[str, str] = {}
        check_shares(self.gates.values(), allowance.allowed)
        self.phase: Tensor
        self.register_buffer("phase", torch.tensor(_PREPARED, dtype=torch.uint8))
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(0, dtype=torch.int64))
        self.progress = 0.0
        self.followed_at = 0.0
        self.method = make_method(config)
        # Until calibration knows better every unit has the score that AutoReP starts from.
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for gate in self.gates.values():
                gate.score.copy_(torch.rand(gate.score.shape, generator=generator))
                gate.score.requires_grad_(self.method.trains_scores)
        self.train(network.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network.

        Raises:
            DataError: The inputs have another shape than the model was captured with.
        """
        self.example.check_same_shapes(ExampleInputs(args, kwargs))
        return self.network(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """Progress, the allowance, when and whether fits follow, whether masks are soft, the method's numbers."""
        observing = any(gate.mode == "follow" for gate in self.gates.values())
        soft = any(gate.soft for gate in self.gates.values())
        allowed = float(self.allowance.allowed)
        numbers = [self.progress, allowed, self.followed_at, float(observing), float(soft), *self.method.state]
        return torch.tensor(numbers, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore them."""
        self.progress, allowed, self.followed_at, observing, soft, *own = state.tolist()
        if self.meter is not None:
            self.allowance = replace(self.allowance, allowed=int(allowed))
        self.method.state = own
        for gate in self.gates.values():
            gate.mode = "follow" if observing else "run"
            gate.soft = bool(soft) and gate.pinned is None

    @property
    def gates(self) -> dict[str, GatedActivation]:
        """Gates by site name, in execution order."""
        return gates_of(self.network)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, gateable and fixed, in execution order."""
        return sites_of(self.network)

    @property
    def kept(self) -> int:
        """Gateable comparisons that the gates keep now, for one sample."""
        return sum(gate.kept_comparisons for gate in self.gates.values())

    @property
    def replaced(self) -> float:
        """Share of the gateable comparisons that the gates replace now."""
        return 1 - self.kept / max(self.allowance.gateable, 1)

    @property
    def unspent(self) -> int:
        """Allowed comparisons that are not spent; after projection smaller than the cheapest unit left."""
        return self.allowance.allowed - self.kept

    @property
    def is_projected(self) -> bool:
        """Whether the gates are frozen within the budget."""
        return int(self.phase) == _PROJECTED

    def calibrate(self, batches: Iterable[Any] | ExampleInputs, *, seed: int = 0) -> None:
        """Fit the polynomials as ``calibration.prefix`` says, and start the scores.

        Args:
            batches: Training batches, of which the first ``calibration.samples`` samples are used, or inputs.
            seed: Of the random signs or of the random scores.

        Raises:
            NonFiniteError: No polynomials give finite outputs.
            BudgetError: The model's cost is not known, or a budget in bytes, messages or seconds cannot be met.
        """
        given = isinstance(batches, ExampleInputs)
        inputs = self.take_sample(batches)
        was_training = self.training
        self.eval()
        self.fallbacks = fit_polynomials(self, inputs, given=given)
        if self.meter is not None:
            open_sites(self, self.meter, seed)
        self.method.start(self, inputs, seed)
        self.calibrated_on = f"{inputs.size} {'example inputs' if given else 'training samples'}"
        self.phase.fill_(_CALIBRATED)
        self.train(was_training)

    def start_from(self, state: Mapping[str, Tensor], batches: Iterable[Any]) -> None:
        """Start from a trained model of the same kind at a larger budget: its weights, fits and kept units.

        Args:
            state: Its state dict.
            batches: Training batches, for the ranges.
        """
        self.load_state_dict(dict(state))
        self.take_sample(batches)
        self.progress, self.followed_at = 0.0, self.replaced
        self.steps.zero_()
        self.method = make_method(self.config)
        if self.meter is not None:
            open_sites(self, self.meter, 0)
        free = free_gates(self)
        # What was kept stays ahead of what was not.
        set_by_rank(free, {name: gate.score.detach().sigmoid() + gate.kept for name, gate in free.items()})
        self.method.restart(self)
        self.calibrated_on = f"{self.sample.size} training samples, at a larger budget"
        self.phase.fill_(_CALIBRATED)

    def take_sample(self, batches: Iterable[Any] | ExampleInputs) -> ExampleInputs:
        """Set and return the inputs to calibrate and measure ranges on: the first samples of epoch 0."""
        if not isinstance(batches, ExampleInputs):
            set_epoch(batches, 0)
            batches = collect_samples(batches, self.config.calibration.samples, self.example)
        self.sample = batches.to(device=self.phase.device)
        return self.sample

    def parameter_groups(self, *, lr: float, gate_lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for an optimiser: weights, polynomials (never decayed), scores (never decayed)."""
        gates = list(self.gates.values())
        scores = [gate.score for gate in gates if gate.pinned is None]
        coefficients = [gate.raw_coefficients for gate in gates if not gate.identity]
        special = {id(p) for gate in gates for p in (gate.score, gate.raw_coefficients)}
        weights = [p for p in self.parameters() if id(p) not in special and p.requires_grad]
        return [
            {"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay},
            {"name": "polynomials", "params": coefficients, "lr": lr, "weight_decay": 0.0},
            {"name": "scores", "params": scores, "lr": gate_lr, "weight_decay": 0.0},
        ]

    def budget_penalty(self) -> Tensor:
        """What the method adds to the loss for what is kept above the budget; differentiable, before its weight.

        For the default method ``max(0, density − target density)``, both as shares of the gateable comparisons; the
        target follows the schedule at the progress of the last :meth:`step`. The gradient reaches the scores.
        """
        return self.method.penalty(self)

    def pots(self) -> list[Pot]:
        """Gates that share a part of the budget; the common pot is the last."""
        return pots(self.gates.values(), self.allowance.allowed)

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Update fits and gates as the method says; to be called after ``optimizer.step()``.

        The default method flips gates by their hysteresis band. Where more is kept than its schedule allows at
        ``progress``, all scores are lowered by the one amount that closes the gap, so that the budget is reached
        whatever the number of steps, and the order of the scores alone decides who goes.

        Args:
            progress: Share of the gate training that is done, 0 to 1.

        Raises:
            ConfigError: ``progress`` is outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ConfigError(
                "Progress goes from 0 to 1.", received=repr(progress), fix="Pass steps done / steps in total."
            )
        if self.is_projected:
            return
        self.progress = progress
        self.steps += 1
        self.method.update(self, progress)
        self._follow(progress)

    def _follow(self, progress: float) -> None:
        """Let the fits follow the moving input distribution: every few steps, and after many flips at once."""
        options = self.config.polynomials
        many = abs(self.replaced - self.followed_at) > _MANY_FLIPS
        due = progress < options.refresh_until and (many or int(self.steps) % options.refresh_every == 0)
        if due:
            self.followed_at = self.replaced
        for gate in self.gates.values():
            gate.mode = "follow" if due else "run"

    def project(self) -> None:
        """Choose the kept units by score under the exactness rule, and freeze the gates."""
        for gate in self.gates.values():
            gate.mode = "run"
        self.method.finish(self)
        ProjectBudgetPass(self.allowance.allowed)(self.network)
        self.freeze()
        self.fit_to_cost()

    def fit_to_cost(self) -> None:
        """Where the budget is in bytes, messages or seconds: keep as much as it has room for in the lowered graph.

        Part of the projection; called again after a fine-tuning, which may change what can be absorbed.

        Raises:
            BudgetInfeasibleError: The trained model costs more even where the least is kept.
        """
        if self.meter is not None:
            project_within(self, self.meter)

    def freeze(self) -> None:
        """Declare the present state of the gates final, as a plan's is."""
        self.phase.fill_(_PROJECTED)

    def set_gates_to(self, state: Literal["kept", "replaced"]) -> None:
        """Keep or replace every unit that is not pinned; for comparisons and tests."""
        for gate in self.gates.values():
            gate.kept.fill_((gate.pinned or state) == "kept")
