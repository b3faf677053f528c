"""Compile a model in a training loop of one's own; see docs/own_loop.md.

Run it with `python examples/own_loop.py` after `pip install .`; it takes about a minute on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import autorep_fx
from autorep_fx.demo import train_digits
from autorep_fx.models_zoo import create
from autorep_fx.models_zoo.data import Batches, digits, random_shift


def main(epochs: int = 10) -> None:
    data = digits()
    train = Batches(data.train, 64, augment=random_shift(1))
    model = train_digits(create("digits_resnet"), train)

    gated = autorep_fx.prepare(model, "5%", example_inputs=data.train.x[:2])
    gated.calibrate(train)
    optimizer = torch.optim.AdamW(gated.parameter_groups(lr=1e-3, gate_lr=1e-2))
    done, steps = 0, epochs * len(train)
    for _ in range(epochs):
        gated.train()
        for x, y in train:
            outputs = gated(x)
            with torch.no_grad():
                teacher = model(x)
            loss = F.cross_entropy(outputs, y) + autorep_fx.kd_loss(outputs, teacher) + gated.budget_penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            gated.step(done / steps)
    gated.project()

    compiled = autorep_fx.lower(gated.eval())
    with torch.no_grad():
        before = float((model(data.test.x).argmax(1) == data.test.y).float().mean())
        after = float((compiled.module(data.test.x).argmax(1) == data.test.y).float().mean())
    compiled.export("own_loop.onnx")
    print(f"{compiled.original_comparisons:,} → {compiled.comparisons:,} comparisons")
    print(f"test accuracy {before:.2%} → {after:.2%}, without fine-tuning; written: own_loop.onnx")


if __name__ == "__main__":
    main()
