"""Training runs as a program: ``python resumed_run.py FOLDER SOURCE MARK [FOLDER SOURCE MARK ...]``, one after another.

Each run is a process of its own, forked from one that has imported everything, and writes FOLDER/done.pt at its end;
after MARK steps it is killed, MARK 0 runs through. Prints how each ended: 0, or the signal with a minus.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first step of any optimizer loads it
from torch import nn

from steepest.core.memory import SampleMemory
from steepest.core.objective import Objective
from steepest.core.random import RandomStream
from steepest.core.reductions import reduce
from steepest.descent import ArrayBatches, Checkpoint, Descent, EarlyStopping, Hook


class Remembering(Objective):
    """Cross-entropy weighed by each sample's last loss, with noise of its own stream and a factor of the epoch."""

    name = "remembering"
    tasks = ("multiclass",)
    needs = ("index",)
    stateful = True

    def __init__(self, rows):
        super().__init__()
        self.memory, self.stream = SampleMemory(rows, initial=1.0), RandomStream(3)
        self.register_buffer("factor", torch.ones(()))

    def start_epoch(self, epoch, epochs):
        self.factor.fill_(1 + 0.1 * epoch + 0.01 * torch.rand(()))  # from torch's own random state, too

    def forward(self, outputs, target, *, index):
        each = nn.functional.cross_entropy(outputs, target, reduction="none")
        loss = each * self.memory.read(index) * self.factor
        if self.training:
            self.memory.write(index, 0.5 + each.sigmoid() + 0.1 * self.stream.normal(len(each)))
        return reduce(loss, self.reduction)


class Augmented(torch.utils.data.Dataset):
    """Rows with noise from every random state that a data set may draw from."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = 0.1 * torch.randn(self.x.shape[1]) + random.random() + np.random.rand()  # noqa: NPY002
        return self.x[i] + noise, self.y[i], i


class Mark(Hook):
    def __init__(self, steps):
        self.left = steps

    def on_step(self, descent, batch, loss):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, source, mark):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    x = torch.randn(45, 4)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    if source == "arrays":
        batches = ArrayBatches(x, y, batch_size=6, seed=4)
    else:
        batches = torch.utils.data.DataLoader(
            Augmented(x, y), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(8)
        )
        if source == "plain-loader":
            batches = torch.utils.data.DataLoader(Augmented(x, y), batch_size=6, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)

    def accuracy(descent):
        descent.model.eval()
        descent.objective.eval()
        with torch.no_grad():
            return (descent.model(x).argmax(-1) == y).double().mean()

    run = Descent(
        model,
        Remembering(45),
        batches,
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=48),
        hooks=[
            Checkpoint(folder / "run.pt", every=3),
            EarlyStopping(accuracy, patience=20, keep_best=True),
            Mark(mark),
        ],
    )
    run.resume(folder / "run.pt")
    start = (run.epoch, run.step)
    run.fit(6)
    state = run.state_dict()
    state.pop("random_at_epoch")
    torch.save({"state": state, "start": start}, folder / "done.pt")


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    for folder, source, mark in zip(*[iter(sys.argv[1:])] * 3):
        run = fork.Process(target=main, args=(Path(folder), source, int(mark)))
        run.start()
        run.join()
        print(run.exitcode)
