"""A path of falling budgets: each compilation starts from the one before, and the cheapest good one is found."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from autorep_fx.artifact import load
from autorep_fx.budget import Budget
from autorep_fx.compilation import Request, compile_model, evaluate_original, metric_name
from autorep_fx.compiled import Compiled
from autorep_fx.cost import resolve
from autorep_fx.errors import CheckpointError, ConfigError, OutputError
from autorep_fx.files import atomic_path, output_directory, write_text
from autorep_fx.passes.graphs import sites_of
from autorep_fx.report.sweep import sweep_page
from autorep_fx.sites import Site
from autorep_fx.stages import capture, select_sites
from autorep_fx.training.evaluation import evaluate
from autorep_fx.training.gated_model import GatedModel
from autorep_fx.training.trainer import run_identity

__all__ = ["LADDER", "Sweep", "SweepRow", "run_path"]

logger = logging.getLogger(__name__)

#: Budgets that are tried where none are named.
LADDER = ("50%", "25%", "10%", "5%", "2.6%", "1%", "0.4%", "0%")
# So many failures in a row end a search: accuracy is not quite monotone in the budget.
_FAILURES = 2
_STATE = "gated.safetensors"
# Written last: what a finished budget depended on, the budget before it among that.
_FINISHED = "finished.json"


@dataclass(frozen=True)
class SweepRow:
    """One budget of a sweep.

    Attributes:
        budget: As it was asked for.
        comparisons: Nominal comparisons of the compiled model for one sample.
        metric: Metric on the validation data; None where there is none.
        folder: Name of its folder in that of the sweep; None where nothing is written.
    """

    budget: str
    comparisons: int
    metric: float | None
    folder: str | None


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        rows: One per budget, from the largest to the smallest.
        original_comparisons: Nominal comparisons of the untouched model.
        original_metric: Its metric on the validation data.
        metric_name: Name of the metric.
        max_drop: What the metric may fall by.
        best: The cheapest model within it, or None.
    """

    rows: tuple[SweepRow, ...]
    original_comparisons: int
    original_metric: float | None
    metric_name: str | None
    max_drop: float
    best: Compiled | None

    @property
    def winner(self) -> SweepRow | None:
        """The cheapest row within the allowed drop."""
        good = [row for row in self.rows if _is_good(row.metric, self.original_metric, self.max_drop)]
        return min(good, key=lambda row: row.comparisons) if good else None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        winner = self.winner
        return {
            "original": {"comparisons": self.original_comparisons, "metric": self.original_metric},
            "metric": self.metric_name, "max_drop": self.max_drop, "rows": [asdict(row) for row in self.rows],
            "winner": None if winner is None else winner.budget,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{'budget':>10} {'comparisons':>14} {self.metric_name or 'metric':>10} {'change':>8}"]
        first = SweepRow("original", self.original_comparisons, self.original_metric, None)
        for row in (first, *self.rows):
            metric = change = ""
            if row.metric is not None and self.original_metric is not None:
                metric, change = f"{row.metric:.4f}", f"{row.metric - self.original_metric:+.4f}"
            mark = " *" if row is self.winner else ""
            lines.append(f"{row.budget:>10} {row.comparisons:>14,} {metric:>10} {change:>8}{mark}")
        if self.winner is not None:
            lines.append(f"* the cheapest within {self.max_drop:g} of the original")
        return "\n".join(lines)


def run_path(
    request: Request, budgets: Sequence[Budget], *, max_drop: float, search: bool = False, target: Path | None = None,
    resume: bool = False,
) -> Sweep:  # fmt: skip
    """Compile to falling budgets; capture, teacher and calibration are shared, and each starts from the last.

    Args:
        request: What is compiled.
        budgets: The budgets, in any order.
        max_drop: What the metric may fall by for the winner.
        search: Stop when two budgets in a row have fallen by more.
        target: Folder for one folder per budget, ``sweep.json``, ``sweep.html`` and ``best/``, the winner.
        resume: Take finished budgets from ``target``, and go on in the one that was not.

    Raises:
        ConfigError: There is no metric to search by, or no budget.
        AutorepError: As of :func:`autorep_fx.transform`.
    """
    original = evaluate_original(request)
    if search and original is None:
        raise ConfigError(
            "A search by the metric needs validation data and a metric.",
            fix="Pass val_data= and, where the model is no plain classifier, metric=.",
        )
    captured = capture(request.model, request.inputs, verification=request.settings.verification)
    sites = sites_of(select_sites(captured, request.inputs, request.settings, verification="off")[0])
    path = _Path(replace(request, captured=captured), original, max_drop, target, resume)
    for budget in _falling(budgets, sites):
        path.add(budget)
        if search and path.failures == _FAILURES:
            break
    sweep = path.result(sum(site.comparisons for site in sites))
    if target is not None:
        write_text(target / "sweep.json", json.dumps(sweep.to_json(), indent=2) + "\n")
        write_text(target / "sweep.html", sweep_page(sweep.to_json(), title=type(request.model).__name__))
        _copy_winner(sweep, target)
    return sweep


def _falling(budgets: Sequence[Budget], sites: Sequence[Site]) -> list[Budget]:
    """The budgets from the largest to the smallest; of those that are the same number of comparisons, one.

    Raises:
        ConfigError: Costs in different terms, or costs and comparisons, have no order.
    """
    terms = {(b.kind, b.protocol, b.network) if b.is_cost else None for b in budgets}
    if len(terms) > 1:
        raise ConfigError(
            "These budgets cannot be put in order.", received=", ".join(str(b) for b in budgets),
            fix="Give all of them in comparisons, or all in the same unit under one protocol (and network).",
        )  # fmt: skip
    unique: dict[float, Budget] = {}
    for budget in budgets:
        size = float(budget.value) if budget.is_cost else resolve(budget, sites).allowed
        first = unique.setdefault(size, budget)
        if first.short != budget.short:
            logger.info("%s and %s are the same number of comparisons", first.short, budget.short)
    return [unique[size] for size in sorted(unique, reverse=True)]


class _Path:
    """The budgets that are done, and the state that the next one starts from."""

    def __init__(
        self, request: Request, original: float | None, max_drop: float, target: Path | None, resume: bool
    ) -> None:
        self.request, self.original, self.max_drop = request, original, max_drop
        self.target, self.resume = target, resume
        self.rows: list[SweepRow] = []
        self.best: Compiled | None = None
        self.failures = 0
        self._state: dict[str, Tensor] | None = None
        self._name: str | None = None
        assert request.captured is not None
        self._identity = run_identity(request.captured, request.settings, request.seed, request.data)

    def add(self, budget: Budget) -> None:
        """Compile to the next smaller budget."""
        name = f"budget-{budget.short.replace('%', 'pc').replace(',', '').replace('/', '-')}"
        folder = None if self.target is None else output_directory(self.target / name)
        self._identity = sha256(f"{self._identity}|{budget}".encode()).hexdigest()
        finished = self.resume and folder is not None and (folder / _FINISHED).exists()
        compiled = self._load(folder) if finished and folder is not None else self._compile(budget, folder)
        metric = compiled.metrics.get("compiled, torch")
        self._name = compiled.metric_name or self._name
        self.rows.append(SweepRow(budget.short, compiled.comparisons, metric, None if folder is None else name))
        logger.info("%s: %d comparisons, metric %s", budget.short, compiled.comparisons, metric)
        if _is_good(metric, self.original, self.max_drop):
            self.best, self.failures = compiled, 0
        else:
            self.failures += 1

    def _compile(self, budget: Budget, folder: Path | None) -> Compiled:
        def keep(gated: GatedModel) -> None:
            self._state = {name: value.detach().cpu().clone() for name, value in gated.state_dict().items()}

        resume = self.resume and folder is not None and (folder / "checkpoint").exists()
        compiled = compile_model(self.request, budget, target=folder, resume=resume, start=self._state, keep_state=keep)
        if folder is not None and self._state is not None:
            with atomic_path(folder / _STATE) as temporary:
                save_file(self._state, temporary)
        if folder is not None:
            write_text(folder / _FINISHED, json.dumps({"identity": self._identity}) + "\n")
        return compiled

    def _load(self, folder: Path) -> Compiled:
        """A budget that an earlier run has finished.

        Raises:
            CheckpointError: It is of other settings, data, weights or budgets before it.
        """
        found = json.loads((folder / _FINISHED).read_text(encoding="utf-8")).get("identity")
        if found != self._identity:
            raise CheckpointError(
                "What a sweep has finished is of another run.",
                received=f"{folder} with identity {found}",
                fix="Resume with the model, settings, seed and larger budgets that it was made with, or use another "
                "folder.",
            )
        compiled = load(folder, self.request.captured, example_inputs=self.request.inputs)
        assert isinstance(compiled, Compiled)
        if (folder / _STATE).exists():
            self._state = load_file(folder / _STATE)
        if self.request.val_data is None or self.original is None:
            return compiled
        metric = evaluate(compiled.module, self.request.val_data, self.request.objective)
        assert metric is not None
        name = metric_name(self.request.objective)
        return replace(
            compiled, metrics={"original, torch": self.original, "compiled, torch": metric}, metric_name=name
        )

    def result(self, comparisons: int) -> Sweep:
        """What was found, for a model of so many comparisons."""
        return Sweep(tuple(self.rows), comparisons, self.original, self._name, self.max_drop, self.best)


def _is_good(metric: float | None, original: float | None, max_drop: float) -> bool:
    return metric is not None and original is not None and metric >= original - max_drop - 1e-12


def _copy_winner(sweep: Sweep, target: Path) -> None:
    """Copy the winner's folder to ``best``."""
    shutil.rmtree(target / "best", ignore_errors=True)
    if sweep.winner is None or sweep.winner.folder is None:
        return
    fresh = target / ".best"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        shutil.copytree(target / sweep.winner.folder, fresh, ignore=shutil.ignore_patterns(_STATE, _FINISHED))
        fresh.rename(target / "best")
    except OSError as error:
        raise OutputError(f"The winner cannot be copied to {target / 'best'}.", received=str(error)) from error
