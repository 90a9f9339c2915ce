"""EnsLoss: over-parameterised nets trained long over-fit less than with any fixed loss.

Set-up of the claim: pairs of image classes and breast_cancer, an MLP with 70 weights a row trained long by the paper's
optimizer (SGD, momentum 0.9, weight decay 5e-4, cosine schedule), EnsLoss against binary cross-entropy, hinge and
exponential loss at one learning rate, which is low enough that the exponential loss stays finite. Expected: test
accuracy 0.3 to 2 points above cross-entropy, and a flat, not falling, late test curve (not more than 0.3 points below
the middle of training).

Four pairs of CIFAR-10 (cat and dog, car and truck, plane and ship, deer and horse; 600 rows to train and 600 to test
each, pooled to 8 x 8 pixels) take the place of Fashion-MNIST's shirt and T-shirt; their mean with breast_cancer counts,
each of the five data sets alike. The size of a claimed gain is that of the middle of its range, 1.15 points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from ....core.objective import Objective, TaskInfo
from ....descent import Descent, Hook, Stack, StackedBatches, StackedObjective, StackedStep
from ....losses.classification.ensloss import EnsLoss
from ....nn.networks import Network, mlp
from ...data import built_in, cifar10_subset, split
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...score_losses import ScoreLoss

SEEDS = 12
RATE = 0.01
WIDTH = 128
PAIRS = {"cat and dog": (3, 5), "car and truck": (1, 9), "plane and ship": (0, 8), "deer and horse": (4, 7)}
FIXED = {"cross-entropy": "logistic", "hinge": "hinge", "exponential": "exponential"}
ARMS = (*FIXED, "EnsLoss")
CLAIMS = (
    Claim(
        "gain",
        "test accuracy is at least 0.3 points above binary cross-entropy's (0.3 to 2 expected)",
        size=0.85,
        threshold=0.3,
    ),
    Claim("gain over all", "and above hinge and exponential loss, the better of them (points)", size=1.15),
    Claim(
        "late",
        "its test curve does not fall: the last fifth of training is not 0.3 points below the middle fifth",
        size=0.3,
        threshold=-0.3,
    ),
)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def run(scale: str, seed: int) -> Evidence:
    """Test accuracy after every tenth of training, in the mean over the data sets."""
    full = scale == "full"
    data: dict[str, Data] = {"breast_cancer": built_in("breast_cancer", seed, train=0.5)}
    if full:
        data |= pairs(seed)
    curves = {name: curve(parts, 60 if full else 10, seed) for name, parts in data.items()}
    mean = np.mean(list(curves.values()), axis=0)  # [arms, ten moments]
    rows = [
        {"arm": arm, "training": (moment + 1) / 10, "accuracy": float(value)}
        for arm, line in zip(ARMS, mean)
        for moment, value in enumerate(line)
    ]
    last = dict(zip(ARMS, mean[:, -1].tolist()))
    own = mean[ARMS.index("EnsLoss")]
    effects = {
        "gain": last["EnsLoss"] - last["cross-entropy"],
        "gain over all": last["EnsLoss"] - max(last["hinge"], last["exponential"]),
        "late": float(own[8:].mean() - own[4:6].mean()),
    }
    return Evidence(rows, effects)


def pairs(seed: int) -> dict[str, Data]:
    """Two classes of images each, pooled to 8 x 8."""
    x, y, x_more, y_more = cifar10_subset()
    images, labels = np.concatenate([x, x_more]), np.concatenate([y, y_more])
    small = images.reshape(len(images), 3, 8, 4, 8, 4).mean((3, 5)).reshape(len(images), -1)
    problems = {}
    for name, (first, second) in PAIRS.items():
        own = np.isin(labels, (first, second))
        problems[name] = split(small[own], (labels[own] == second).astype(np.int64), seed, train=0.5)
    return problems


class _Tenths(Hook):
    """Test accuracy of each model in percent, ten times in training."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
        self.x, self.y, self.every = x, y, epochs // 10
        self.found: list[np.ndarray] = []

    def on_epoch_end(self, descent: Descent) -> None:
        if descent.epoch % self.every == 0:
            with torch.no_grad():
                scores = descent.model(self.x.expand(len(ARMS), *self.x.shape))
            self.found.append(100 * ((scores > 0).long() == self.y).float().mean(1).numpy())


def curve(data: Data, epochs: int, seed: int) -> np.ndarray:
    """``[arms, 10]`` test accuracy over training; all arms share initial weights and batches."""
    x, x_test = (torch.as_tensor(features, dtype=torch.float32) for features in (data[0], data[2]))
    y, y_test = torch.as_tensor(data[1]), torch.as_tensor(data[3])
    rows, batch = len(x), 100
    steps = -(-rows // batch)
    info = TaskInfo("binary", rows, 2, tuple(y.bincount().tolist()), WIDTH, epochs, steps, seed)
    objectives: list[Objective] = [ScoreLoss(kind) for kind in FIXED.values()]
    objectives.append(EnsLoss.from_task(info))
    models: list[nn.Module] = []
    for objective in objectives:
        torch.manual_seed(seed)
        models.append(Network(mlp(x.shape[1], width=WIDTH, depth=2), objective.head(WIDTH, info)))
    stack = Stack(models)
    count = len(models)
    batches = StackedBatches([(x, y, None)], [0] * count, [seed] * count, batch_size=batch, steps=steps)
    optimizer = torch.optim.SGD(stack.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    hook = _Tenths(x_test, y_test, epochs)
    Descent(
        stack,
        StackedObjective(objectives),
        batches,
        method=StackedStep(),
        optimizer=optimizer,
        schedule=schedule,
        hooks=[hook],
    ).fit(epochs)
    return np.stack(hook.found, axis=1)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Test accuracy over training."""
    return arms_figure(evidence, x="training", y="accuracy")
