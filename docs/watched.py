"""Train a small network that is recorded and guarded, with two mishaps, and draw its page: what the guide shows."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from steepest.watch import Guard, NeuralCollapseMonitor, Recorder, RepresentationGeometry, SpectrumMonitor, read_run
from steepest.watch.page import write_page
from steepest.watch.recorder import default_probes

STEPS, BATCH = 900, 64
RATE, MISHAP, OVERFLOW = 0.002, range(420, 423), 650


def train(folder: Path) -> Path:
    """A run of 900 steps on handwritten digits: the rate is 1,000 times too high for three, one loss is infinite."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    objective, optimizer = nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=RATE)
    log = folder / "run.jsonl"
    probes = [*default_probes(), SpectrumMonitor(), NeuralCollapseMonitor(), RepresentationGeometry()]
    with (
        Recorder(model, objective, optimizer, probes, every=30, sinks=[log]) as recorder,
        Guard(model, optimizer, objective, log=log) as guard,
    ):
        for step in range(STEPS):
            rows = torch.randint(1_400, (BATCH,))
            inputs = x[rows]
            optimizer.param_groups[0]["lr"] = RATE * (1_000 if step in MISHAP else 1)
            loss = objective(model(inputs), y[rows]) * (float("inf") if step == OVERFLOW else 1.0)
            recorder.observe(loss, inputs, y[rows])
            guard.observe(loss, inputs, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return write_page(read_run(folder), folder / "run.html")


if __name__ == "__main__":
    print(train(Path(sys.argv[1] if len(sys.argv) > 1 else "build/watched")))
