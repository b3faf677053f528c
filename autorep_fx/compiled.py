"""The result of a transformation: the lowered module, its plan, and everything that can be written from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from autorep_fx.config import TransformConfig
from autorep_fx.config_io import parse_config, to_yaml
from autorep_fx.config_sections import ExportTarget
from autorep_fx.cost import count_comparisons
from autorep_fx.cost.arithmetic import CostReport, graph_cost
from autorep_fx.export.onnx_export import export_onnx
from autorep_fx.export.torch_export import export_torch
from autorep_fx.export.verify import Verification
from autorep_fx.files import atomic_path, output_directory, write_text
from autorep_fx.passes.captured import CapturedModule
from autorep_fx.passes.forms import NOTES_KEY
from autorep_fx.passes.inputs import ExampleInputs
from autorep_fx.plan import Plan
from autorep_fx.report.data import HistoryPoint, ReportData, ReportPolynomial, ReportSite
from autorep_fx.report.html import write_report
from autorep_fx.sites import Site
from autorep_fx.versions import installed

if TYPE_CHECKING:
    from autorep_fx.training.history import Progress

__all__ = ["Compiled"]

_SAVED = ("model.onnx", "model.onnx.data", "model.pt2", "report.html", "weights.safetensors", "settings.yaml")
_PACKAGES = ("autorep-fx", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True, repr=False)
class Compiled:
    """A model that spends no more than its budget.

    Attributes:
        module: The lowered module: an ``fx.GraphModule`` of plain operations, in eval mode. Call it as the original.
        plan: Per site what is kept and by what the rest is replaced.
        weights: Weights of the captured model after training, by the original parameter names.
        example: Example inputs.
        config: The settings with all defaults filled in.
        sites: All sites, with their source lines.
        history: Logged points of training.
        metrics: Label to value of the metric on the validation data, the original model's first.
        metric_name: Name of the metric, or None.
        polynomials: A few channels with the inputs that they met, for the report.
        warnings: What the user must know.
        title: Name of the model in reports.
    """

    module: CapturedModule
    plan: Plan
    weights: Mapping[str, Tensor]
    example: ExampleInputs
    config: TransformConfig
    sites: tuple[Site, ...]
    history: tuple[Progress, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    metric_name: str | None = None
    polynomials: tuple[ReportPolynomial, ...] = ()
    warnings: tuple[str, ...] = ()
    title: str = "model"

    @property
    def comparisons(self) -> int:
        """Nominal comparisons for one sample, counted in the lowered graph."""
        return count_comparisons(self.module)

    @property
    def original_comparisons(self) -> int:
        """Nominal comparisons of the model that was given, for one sample."""
        return self.plan.original_comparisons

    @property
    def unspent(self) -> int:
        """Comparisons of the budget that no selection of units could spend."""
        return self.plan.unspent

    @property
    def notes(self) -> tuple[str, ...]:
        """What the compiler did of its own accord."""
        return self.plan.notes

    @property
    def lowering_notes(self) -> tuple[str, ...]:
        """What the lowering could not absorb, pack or drop, and why: sites or nodes, then the reason."""
        found = self.module.meta.get(NOTES_KEY, {})
        return tuple(f"{', '.join(subjects)}: {reason}" for reason, subjects in found.items())

    def __str__(self) -> str:
        limits = f"budget: {self.plan.budget}; fixed: {self.plan.fixed_comparisons:,}; unspent: {self.unspent:,}"
        lines = [f"{self.title}: {self.original_comparisons:,} → {self.comparisons:,} comparisons ({limits})"]
        name = f"{self.metric_name or 'metric'} on the validation data"
        lines += [f"{name}, {label}: {value:.4f}" for label, value in self.metrics.items()]
        lines += [f"note: {text}" for text in self.notes] + [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    __repr__ = __str__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the lowered module."""
        return self.module(*args, **kwargs)

    def export(self, path: Path | str, *, target: ExportTarget | None = None) -> Verification:
        """Write the ONNX file, after its outputs and its count were checked.

        Args:
            path: Target file.
            target: ``any``, or ``onnxruntime-cpu`` for a file that no other engine is to run; None for that of the
                settings.

        Raises:
            ConfigError: There is no such target, or the settings export in float16 and it is for float32.
            ParityError: onnxruntime's outputs or the counts differ.
            OutputError: The file cannot be written.
        """
        options = self.config.export
        if target is not None:
            options = parse_config({"export": {**options.model_dump(), "target": target}}).export
        return export_onnx(self.module, self.example, path, plan=self.plan, **options.model_dump())

    def export_torch(self, path: Path | str) -> Verification:
        """Write a ``torch.export`` program, ``.pt2``, after its outputs and its count were checked.

        ``torch.export.load(path).module()`` runs it, without this package, in the model's own floating-point type.

        Raises:
            ParityError: What is read back computes or counts something else.
            OutputError: The file cannot be written.
        """
        return export_torch(self.module, self.example, path, plan=self.plan)

    def cost(self) -> CostReport:
        """Comparisons, multiplications and MACs per node of the lowered graph, for one sample."""
        return graph_cost(list(self.module.graph.nodes))

    def report(self, path: Path | str) -> Path:
        """Write the one-file HTML report and return its path.

        Raises:
            OutputError: It cannot be written.
        """
        return write_report(self.report_data(), path)

    def report_data(self) -> ReportData:
        """What the report shows."""
        plan = self.plan
        return ReportData(
            title=self.title, budget=plan.budget.short, before=plan.original_comparisons, after=self.comparisons,
            fixed=plan.fixed_comparisons, unspent=plan.unspent, sites=self._report_sites(),
            history=tuple(HistoryPoint(p.phase, p.step, p.loss, p.kept, p.metric) for p in self.history),
            polynomials=self.polynomials, metric_name=self.metric_name, metrics=self.metrics, warnings=self.warnings,
            notes=(*plan.notes, *self.lowering_notes), settings=to_yaml(self.config),
            versions={**installed(_PACKAGES), "date": date.today().isoformat()},
        )  # fmt: skip

    def _report_sites(self) -> tuple[ReportSite, ...]:
        gated = {site.name: site for site in self.plan.sites}
        rows = []
        for site in self.sites:
            plan = gated.get(site.name)
            source = None if site.source is None else Path(site.source).name
            if plan is None:
                rows.append(
                    ReportSite(site.name, site.kind, site.shape, site.comparisons, site.comparisons, "fixed",
                               source=source, note=site.reason or "")
                )  # fmt: skip
                continue
            rows.append(
                ReportSite(site.name, site.kind, site.shape, site.comparisons, plan.comparisons, plan.granularity,
                           plan.fitted_degree, source, plan.input_range)
            )  # fmt: skip
        return tuple(rows)

    def save(self, folder: Path | str) -> Path:
        """Write plan, weights, settings, ONNX file and report into ``folder``; :func:`autorep_fx.load` reads them.

        ``outputs`` in the settings leaves out the ONNX file or the report, or adds a ``.pt2``. The plan is written
        last: a folder with a plan is complete.

        Raises:
            OutputError: They cannot be written.
            ParityError: The export failed its check; the other files are not written either.
        """
        target = output_directory(folder)
        for name in ("plan.json", *_SAVED):  # what an earlier result left, the plan first: without it nothing loads
            (target / name).unlink(missing_ok=True)
        if self.config.outputs.onnx:
            self.export(target / "model.onnx")
        if self.config.outputs.pt2:
            self.export_torch(target / "model.pt2")
        if self.config.outputs.report:
            self.report(target / "report.html")
        with atomic_path(target / "weights.safetensors") as temporary:
            save_file(_apart(self.weights), temporary)
        write_text(target / "settings.yaml", to_yaml(self.config))
        self.plan.save(target, beside=[n for n in _SAVED if n != "report.html" and (target / n).exists()])
        return target


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as safetensors takes them: contiguous, and none in the memory of another."""
    result, seen = {}, set()
    for name, value in weights.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() > tensor.nbytes
        seen.add(storage.data_ptr())
        result[name] = tensor.clone() if shared else tensor
    return result
