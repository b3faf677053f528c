"""The documented example of a loop of one's own."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

import autorep_fx
from nets import TinyNet, batches, trained_norms


def test_the_documented_loop_spends_the_budget(tmp_path: Path) -> None:
    """Prepare → calibrate → train with step() → project → finetune → lower → export, as docs/own_loop.md shows it."""
    torch.manual_seed(0)
    data = batches(count=8)
    model = trained_norms(TinyNet(), data[0][0])
    gated = autorep_fx.prepare(model, "5%", example_inputs=data[0][0])
    gated.calibrate(data)
    optimizer = torch.optim.AdamW(gated.parameter_groups(lr=1e-3, gate_lr=1e-2))
    losses, steps, done = [], 4 * len(data), 0
    for _ in range(4):
        gated.train()
        for x, y in data:
            outputs = gated(x)
            with torch.no_grad():
                teacher = model(x)
            loss = F.cross_entropy(outputs, y) + autorep_fx.kd_loss(outputs, teacher) + gated.budget_penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            gated.step(done / steps)
            losses.append(float(loss.detach()))
    gated.project()
    assert gated.kept == gated.allowance.allowed == 26
    compiled = autorep_fx.lower(gated.eval())
    assert compiled.comparisons == 26
    assert compiled.export(tmp_path / "model.onnx").comparisons == 26
    assert sum(losses[-8:]) < sum(losses[:8])
