"""``transform``: a model and a budget in, a compiled model out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autorep_fx.arguments import check_arguments, check_callables, check_free, check_trainable, settled
from autorep_fx.budget import Budget
from autorep_fx.compilation import Request, compile_model
from autorep_fx.compiled import Compiled
from autorep_fx.config import TransformConfig
from autorep_fx.errors import BudgetInfeasibleError, ConfigError, DataError
from autorep_fx.files import output_directory
from autorep_fx.pareto import LADDER, Sweep, run_path
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.training.batches import set_epoch, split_batch
from autorep_fx.training.fabric import resolve_device
from autorep_fx.training.history import Callback
from autorep_fx.training.objective import Objective

__all__ = ["sweep", "transform"]


def transform(
    model: nn.Module | torch.export.ExportedProgram,
    budget: Any = None,
    *,
    max_metric_drop: float | None = None,
    data: Iterable[Any] | None = None,
    val_data: Iterable[Any] | None = None,
    example_inputs: Any = None,
    config: TransformConfig | Mapping[str, Any] | Path | str | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    metric: Callable[[Any, Any], float] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    out_dir: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Compiled:
    """Compile ``model`` so that it spends no more than ``budget``.

    With ``data`` the gates, polynomials and weights are trained. Without, nothing is trained: polynomials are fitted
    on ``example_inputs`` and the kept units are those whose replacement would change the outputs most, by estimate.

    Args:
        model: The trained model, or an exported program of it with a dynamic batch. It is never changed.
        budget: ``12900`` or ``"12.9K"`` comparisons in total, ``"5%"`` or ``0.05`` of the gateable ones, ``0``
            for none,
            or a :class:`Budget`. None with ``max_metric_drop``.
        max_metric_drop: Instead of a budget: look for the cheapest model whose metric on ``val_data`` is at most so
            much below the original's, 0.01 for one point of accuracy. Falling budgets are tried
            (:data:`autorep_fx.pareto.LADDER`), each starting from the one before.
        data: Re-iterable batches ``(inputs, targets)``, or mappings with the targets under ``labels`` or the like.
        val_data: The same; it selects the epoch that is kept and is reported, nothing is trained on it.
        example_inputs: A tensor ``(N, ...)``, a tuple of positional or a mapping of keyword arguments. By default the
            inputs of the first batch.
        config: Settings as a mapping, a :class:`TransformConfig`, or the path of a YAML file.
        loss: ``(outputs, targets) -> scalar``. Cross-entropy by default where the output is one tensor ``(N, K)`` and
            the targets are integers.
        metric: ``(outputs, targets) -> float``, larger is better. Accuracy by default where cross-entropy applies.
        forward: ``(module, inputs) -> outputs``, for models that are not simply called with the inputs.
        out_dir: Folder for the result, its report and the checkpoints.
        resume: Go on from the checkpoint in ``out_dir``, if there is one.
        seed: Seed of everything random. The caller's generators are left alone.
        device: ``cpu`` or ``cuda`` to train on; CUDA where there is one by default.
        callbacks: Called with every logged point of training (:class:`autorep_fx.training.history.Progress`).

    Returns:
        The compiled model.

    Raises:
        BudgetError: The budget is not in the grammar, or above what the model spends.
        BudgetInfeasibleError: The budget is below what no gate can remove.
        UnsupportedModelError: The model cannot be captured.
        NoSitesError: The model has nothing to gate.
        ConfigError: Settings are wrong, or contradict an argument.
        DataError: The data are of the wrong form, or neither data nor example inputs were given.
        NonFiniteError: Data, loss or outputs are NaN or infinite.
        OutputError: ``out_dir`` cannot be written.
    """
    if max_metric_drop is not None:
        if budget is not None:
            raise ConfigError(
                "Either a budget or max_metric_drop decides.", received=f"budget {budget!r} and {max_metric_drop}",
                fix="Leave one of them out; autorep_fx.sweep takes budgets to try.",
            )  # fmt: skip
        found = sweep(
            model, max_metric_drop=max_metric_drop, search=True, data=data, val_data=val_data,
            example_inputs=example_inputs, config=config, loss=loss, metric=metric, forward=forward, out_dir=out_dir,
            resume=resume, seed=seed, device=device, callbacks=callbacks,
        )  # fmt: skip
        return _winner(found)
    wanted = Budget.parse(budget)
    request, target = _request(
        model, wanted, data=data, val_data=val_data, example_inputs=example_inputs, config=config, loss=loss,
        metric=metric, forward=forward, out_dir=out_dir, resume=resume, seed=seed, device=device, callbacks=callbacks,
    )  # fmt: skip
    return compile_model(request, wanted, target=target, resume=resume)


def sweep(
    model: nn.Module | torch.export.ExportedProgram,
    budgets: Iterable[Any] = LADDER,
    *,
    max_metric_drop: float = 0.01,
    search: bool = False,
    **arguments: Any,
) -> Sweep:
    """Compile ``model`` to falling budgets, each from where the one before ended, and find the cheapest good one.

    Args:
        model: As for :func:`transform`.
        budgets: The budgets; by default a ladder from 50 % to 0.
        max_metric_drop: What the metric on ``val_data`` may fall by, for the winner.
        search: Stop when two budgets in a row have fallen by more.
        **arguments: As for :func:`transform`. ``out_dir`` gets a folder per budget, ``sweep.json``, ``sweep.html``
            and ``best/``, a copy of the winner's folder; ``resume=True`` takes up what was finished there.

    Returns:
        A row per budget, and the winner's compiled model.

    Raises:
        AutorepError: As of :func:`transform`.
    """
    if isinstance(budgets, (str, int, float, Budget, Mapping)):
        raise ConfigError(
            "A sweep takes several budgets.", received=repr(budgets), fix='Pass a list, such as ["10%", "2.6%", "0%"].'
        )
    unknown = sorted(set(arguments) - set(_DEFAULTS))
    if unknown:
        raise TypeError(f"sweep() has no argument {', '.join(unknown)}; it takes those of transform()")
    wanted = [Budget.parse(budget) for budget in budgets]
    if not wanted or not isinstance(max_metric_drop, (int, float)) or not max_metric_drop >= 0:
        raise ConfigError(
            "A sweep needs budgets, and a drop that is no less than 0.",
            received=f"{len(wanted)} budgets, max_metric_drop {max_metric_drop!r}",
            fix='Pass for example ["10%", "2.6%", "0%"] and 0.01.',
        )
    resume = bool(arguments.get("resume", False))
    request, target = _request(model, None, **{**_DEFAULTS, **arguments})
    return run_path(request, wanted, max_drop=max_metric_drop, search=search, target=target, resume=resume)


_DEFAULTS: Mapping[str, Any] = {
    "data": None, "val_data": None, "example_inputs": None, "config": None, "loss": None, "metric": None,
    "forward": None, "out_dir": None, "resume": False, "seed": 0, "device": None, "callbacks": (),
}  # fmt: skip


def _winner(found: Sweep) -> Compiled:
    """The cheapest good model of a search.

    Raises:
        BudgetInfeasibleError: There is none.
    """
    if found.best is None:
        raise BudgetInfeasibleError(
            f"No budget that was tried keeps the metric within {found.max_drop:g} of the original.",
            received="\n" + str(found),
            fix="Allow a larger drop, or train longer (training.epochs, finetune.epochs).",
        )
    return found.best


def _request(
    model: Any, budget: Budget | None, *, data: Any, val_data: Any, example_inputs: Any, config: Any, loss: Any,
    metric: Any, forward: Any, out_dir: Any, resume: bool, seed: int, device: str | None, callbacks: Sequence[Callback],
) -> tuple[Request, Path | None]:  # fmt: skip
    """The arguments of a call, checked before any work, and the folder for the result."""
    settings, seed, device = settled(config, budget, seed, device)
    with torch.random.fork_rng():  # a DataLoader draws from the global generator when it is begun
        check_arguments(data, val_data, example_inputs, seed, resume, out_dir)
    check_callables(callbacks, loss=loss, metric=metric, forward=forward)
    target = None if out_dir is None else output_directory(out_dir)
    if target is not None:
        check_free(target, resume)
    if data is not None and isinstance(model, nn.Module):
        check_trainable(model)
    given = _first_inputs(data, seed) if example_inputs is None else example_inputs
    inputs = ExampleInputs.of(given, settings.capture, getattr(model, "forward", None))
    objective, place = Objective(loss, metric, forward), resolve_device(device)
    request = Request(model, inputs, settings, objective, data, val_data, seed, place, tuple(callbacks))
    return request, target


def _first_inputs(data: Iterable[Any] | None, seed: int) -> Any:
    set_epoch(data, 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in () if data is None else data:
            first = split_batch(batch)[0]
            return dict(first.kwargs) or first.args
    raise DataError("data holds no batch.", fix="Pass data with at least one batch.")
