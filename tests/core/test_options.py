"""Every option does something: changing it changes the plan or the output."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import autorep_fx
from autorep_fx.config import DEFAULT_PASSES, TransformConfig
from nets import TinyNet, batches, trained_norms

BASE: dict[str, Any] = {"training": {"epochs": 2}, "finetune": {"epochs": 1}, "calibration": {"samples": 32}}

# Option → (value, value that must differ), both on top of BASE; where the effect is elsewhere, tested below.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gates.granularity": ({}, {"gates": {"granularity": "channel"}}),
    "gates.init": ({}, {"gates": {"init": "random"}}),
    "gates.band": ({}, {"gates": {"band": 0.3}}),
    "polynomials.degree": ({}, {"polynomials": {"degree": 1}}),
    "polynomials.form": ({}, {"polynomials": {"form": "identity"}}),
    "polynomials.sigma_floor": ({}, {"polynomials": {"sigma_floor": 2.0}}),
    "polynomials.c2_bound": ({}, {"polynomials": {"c2_bound": 0.05}}),
    "polynomials.c2_scale": ({}, {"polynomials": {"c2_scale": 1.0}}),
    "polynomials.refresh_until": (
        {"polynomials": {"refresh_every": 1}}, {"polynomials": {"refresh_every": 1, "refresh_until": 0.0}}
    ),
    "polynomials.refresh_every": (
        {"polynomials": {"refresh_every": 1, "refresh_until": 0.9}},
        {"polynomials": {"refresh_every": 3, "refresh_until": 0.9}},
    ),
    "calibration.samples": ({}, {"calibration": {"samples": 16}}),
    "training.method": ({}, {"training": {"epochs": 2, "method": "magnitude"}}),
    "calibration.prefix": (
        {"calibration": {"samples": 32, "prefix": "kept"}}, {"calibration": {"samples": 32, "prefix": "replaced"}}
    ),
    "training.epochs": ({}, {"training": {"epochs": 3}}),
    "training.lr": ({}, {"training": {"epochs": 2, "lr": 1e-4}}),
    "training.gate_lr": ({}, {"training": {"epochs": 2, "gate_lr": 0.5}}),
    "training.weight_decay": ({}, {"training": {"epochs": 2, "weight_decay": 10.0}}),
    "training.warmup": ({}, {"training": {"epochs": 2, "warmup": 0.5}}),
    "training.final_lr": ({}, {"training": {"epochs": 2, "final_lr": 1.0}}),
    "training.features": ({}, {"training": {"epochs": 2, "features": 1.0}}),
    "training.reach": ({}, {"training": {"epochs": 2, "reach": 0.3}}),
    "training.penalty": (
        {"training": {"epochs": 2, "gate_lr": 0.5}}, {"training": {"epochs": 2, "gate_lr": 0.5, "penalty": 100.0}}
    ),
    "training.distillation": ({}, {"training": {"epochs": 2, "distillation": 0.0}}),
    "training.temperature": ({}, {"training": {"epochs": 2, "temperature": 1.0}}),
    "training.range_penalty": ({}, {"training": {"epochs": 2, "range_penalty": 1.0}}),
    "training.clip": ({}, {"training": {"epochs": 2, "clip": 1e-3}}),
    "finetune.epochs": ({}, {"finetune": {"epochs": 2}}),
    "finetune.lr": ({}, {"finetune": {"epochs": 1, "lr": 1e-5}}),
    "finetune.optimizer": ({}, {"finetune": {"epochs": 1, "optimizer": "sgd"}}),
    "finetune.warmup": ({}, {"finetune": {"epochs": 1, "warmup": 0.5}}),
    "finetune.ema": ({}, {"finetune": {"epochs": 1, "ema": 0.9}}),
    "finetune.norm_batches": ({}, {"finetune": {"epochs": 1, "norm_batches": 0}}),
    "execution.precision": ({}, {"execution": {"precision": "bf16"}}),
    "execution.accumulate": ({}, {"execution": {"accumulate": 2}}),
    "substitute": ({}, {"substitute": {"clip": "relu"}}),
    "sites": ({}, {"sites": {"relu#2": {"mode": "replace"}}}),
    "stages": (
        {},
        {"stages": ["capture", "canonicalize", "prepare", "calibrate", "train_gates", "project", "lower", "export"]},
    ),
}  # fmt: skip
# cost.profile: test_cost_budget.py; gates.pools: test_pools.py; capture: test_dynamic_sizes.py; export.target:
# test_export_target.py; in tests/training, checkpoints: test_resume.py, sync_norms: test_two_processes.py, tensorboard:
# test_logs.py, the rest of execution: test_execution.py; others below.
ELSEWHERE = {
    "capture.batch_dims",
    "capture.dynamic_batch",
    "capture.dynamic_size",
    "checkpoints.every_minutes",
    "checkpoints.every_steps",
    "checkpoints.keep",
    "cost.profile",
    "execution.channels_last",
    "execution.compile",
    "execution.deterministic",
    "execution.fuse",
    "execution.recompute",
    "execution.sync_norms",
    "gates.pools",
    "outputs.tensorboard",
    "export.opset",
    "export.dtype",
    "export.target",
    "outputs.onnx",
    "outputs.pt2",
    "outputs.report",
    "verification",
}


@cache
def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return trained_norms(TinyNet(), batches()[0][0])


def _outcome(changes: dict[str, Any]) -> tuple[str, bytes]:
    """Digest of the plan, and the weights."""
    compiled = autorep_fx.transform(_model(), "10%", data=batches(), config={**BASE, **changes})
    weights = b"".join(compiled.weights[name].numpy().tobytes() for name in sorted(compiled.weights))
    return compiled.plan.digest, weights


def test_no_option_is_left_out() -> None:
    """The options tested here are all there are."""
    names = set()
    for section, field in TransformConfig.model_fields.items():
        fields = getattr(field.annotation, "model_fields", None)
        names |= {f"{section}.{option}" for option in fields} if fields else {section}
    assert names == set(CHANGES) | ELSEWHERE


@pytest.mark.parametrize("option", CHANGES)
def test_an_option_changes_the_plan_or_the_weights(option: str) -> None:
    """Two runs that differ in the option alone differ in their result."""
    one, other = CHANGES[option]
    assert _outcome(one) != _outcome(other)


def test_export_options_change_the_file(tmp_path: Path) -> None:
    """The opset and the element type of the ONNX file are as asked."""
    found = {}
    for name, config in {
        "a": {"export": {"opset": 18}}, "b": {"export": {"opset": 20}}, "c": {"export": {"dtype": "float16"}}
    }.items():  # fmt: skip
        compiled = autorep_fx.transform(_model(), "10%", example_inputs=batches()[0][0], config=config)
        compiled.export(tmp_path / f"{name}.onnx")
        model = onnx.load(tmp_path / f"{name}.onnx")
        found[name] = (model.opset_import[0].version, model.graph.input[0].type.tensor_type.elem_type)
    assert found == {"a": (18, 1), "b": (20, 1), "c": (20, 10)}


def test_output_options_leave_files_out(tmp_path: Path) -> None:
    """Without the ONNX file or the report the rest is written."""
    autorep_fx.transform(
        _model(), "10%", example_inputs=batches()[0][0], out_dir=tmp_path,
        config={"outputs": {"onnx": False, "report": False}},
    )  # fmt: skip
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["plan.json", "plan.safetensors", "settings.yaml", "weights.safetensors"]


def test_verification_finds_a_pass_that_changes_outputs() -> None:
    """A pass of one's own that breaks the model is caught at 'numeric' and passes at 'structure'."""
    stages: list[Any] = ["capture", "canonicalize", "prepare", "calibrate", "project", "lower", "export"]
    stages[1] = {"stage": "canonicalize", "passes": [*DEFAULT_PASSES["canonicalize"], "broken_pass:DropBiasPass"]}
    for level in ("structure", "off"):
        autorep_fx.transform(
            _model(), "10%", example_inputs=batches()[0][0], config={"stages": stages, "verification": level}
        )
    with pytest.raises(autorep_fx.errors.InvariantError, match="'canonicalize'"):
        autorep_fx.transform(_model(), "10%", example_inputs=batches()[0][0], config={"stages": stages})
