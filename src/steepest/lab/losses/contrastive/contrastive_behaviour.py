"""The temperature of the contrastive loss: accuracy has a maximum inside, uniformity is bought with tolerance.

Set-up of the claim: 1,500 of the first 10,000 MNIST digits at 14 x 14 pixels, in place of 5,000 of Fashion-MNIST; a
small convolutional network with a projection to 32 numbers, views that are turned, scaled and moved, 12 epochs of Adam
in batches of 64. A linear probe on the frozen features learns from the same images with their labels and is tested on
2,000 others, on whose projections uniformity U and tolerance T are measured. 16 seeds: ten of a second record could
have found 1.2 for the last claim, not a point.

Expected over temperatures .05, .1, .2, .5 and 1: accuracy at .2 is above that at both ends (a point is taken); U and T
grow with the temperature from each to the next (steps of .05 and .01 are taken); the loss that treats all negatives
alike is at least 5 points below the contrastive loss at .2, and over the hardest tenth of negatives it recovers at
least half of what it lost; the contrastive loss over the hardest tenth of negatives varies less over temperatures .05,
.2 and 1 than that over all (a point is taken).

The projection has batch norm, as networks of the publication have. Without it the losses of the hardest tenth (also
as a plain sort of each row) let all embeddings fall onto one point. A first record was without it, with the hardest
half, 15 epochs and eight seeds: the hardest simple loss fell to 74% on one of them; uniformity was lowest at .1 or .2
and not at .05, on a seed that is not reported with 45 epochs and rates of .001 and .003 too (-2.68 and -2.72 at .05,
-2.84 and -3.03 at .1).

The baseline is fair: the contrastive loss at .2, the loss that treats all alike and both over the hardest negatives
have the best of three learning rates by the probe's mean accuracy over two seeds that are not reported
(:func:`choose`); all temperatures of a loss have one rate. The contrastive loss at .2 must reach 88%, which every seed
checks.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from ....core.pair_loss import PairLoss
from ....losses.contrastive.contrastive_behaviour import (
    HardContrastiveLoss,
    SimpleContrastiveLoss,
    tolerance,
    uniformity,
)
from ....losses.contrastive.nt_xent import NTXentLoss
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import PILOTS, best_setting, check_sane
from ...views import features, linear_probe, train_views

SEEDS = 16
CONTRASTIVE, HARD, SIMPLE, HARD_SIMPLE = "contrastive", "hard contrastive", "simple", "hard simple"
TEMPERATURES = {CONTRASTIVE: (0.05, 0.1, 0.2, 0.5, 1.0), HARD: (0.05, 0.2, 1.0), SIMPLE: (1.0,), HARD_SIMPLE: (1.0,)}
"""Of each loss; the last two have none."""
KEEP = 0.1
"""Share of the negatives that the hardest are."""
GRID = (1e-3, 3e-3, 1e-2)
RATES = {CONTRASTIVE: 3e-3, HARD: 3e-3, SIMPLE: 3e-3, HARD_SIMPLE: 3e-3}
"""What :func:`choose` gives."""
SANITY = 88.0
"""Accuracy of the probe on the contrastive loss's features, in per cent."""
CLAIMS = (
    Claim("inside", "accuracy at temperature .2 is above that at .05 and at 1 (a point expected)", size=1.0),
    Claim("uniformity", "uniformity grows from each temperature to the next (.05 expected)", size=0.05),
    Claim("tolerance", "tolerance grows from each temperature to the next (.01 expected)", size=0.01),
    Claim("simple", "negatives treated alike: more than 5 points below the contrastive loss", size=5.0, threshold=5.0),
    Claim("hard simple", "the hardest of them alone recover more than half of that (points above the half)", size=2.0),
    Claim("wide", "the hardest negatives alone: accuracy varies less over temperatures (a point expected)", size=1.0),
)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def data_of(seed: int, scale: str) -> Data:
    """Training and test images with their labels."""
    full = scale == "full"
    images, labels = mnist_10k() if full else load_digits(return_X_y=True)
    train, test = (1500, 2000) if full else (128, 100)
    rows = np.random.default_rng([seed, 3]).permutation(len(labels))[: train + test]
    x, y = halved(images[rows]) if full else images[rows] / 16, labels[rows]
    return x[:train], y[:train], x[train:], y[train:]


def loss_of(name: str, temperature: float) -> PairLoss:
    """A loss; over the hardest tenth of negatives where its name says so."""
    if name == CONTRASTIVE:
        return NTXentLoss(temperature=temperature)
    if name == HARD:
        return HardContrastiveLoss(temperature=temperature, keep_fraction=KEEP)
    return SimpleContrastiveLoss(keep_fraction=KEEP if name == HARD_SIMPLE else 1.0)


def measured(name: str, temperature: float, lr: float, seed: int, scale: str, data: Data) -> dict[str, float | str]:
    """Accuracy of a probe, uniformity and tolerance after training by a loss."""
    full = scale == "full"
    network = train_views(
        *data[:2], loss_of(name, temperature), epochs=12 if full else 2, lr=lr, seed=seed, batch_size=64,
        dtype=torch.float32 if full else torch.float64, normed=True,
    )  # fmt: skip
    body = network[0]
    z, labels = torch.from_numpy(features(network, data[2])), torch.from_numpy(data[3])
    return {
        "loss": name,
        "temperature": temperature,
        "accuracy": linear_probe(body, *data),
        "uniformity": float(uniformity(z)),
        "tolerance": float(tolerance(z, labels)),
    }


def choose() -> dict[str, float]:
    """The learning rate of each loss, at temperature .2, by seeds that are not reported."""
    data = {seed: data_of(seed, "full") for seed in PILOTS[:2]}
    return {
        name: best_setting(
            GRID,
            lambda lr, seed, n=name: float(measured(n, 0.2, lr, seed, "full", data[seed])["accuracy"]),
            PILOTS[:2],
        )
        for name in RATES
    }


def run(scale: str, seed: int) -> Evidence:
    """All losses at all their temperatures."""
    data = data_of(seed, scale)
    rows = [
        measured(name, temperature, RATES[name], seed, scale, data)
        for name, temperatures in TEMPERATURES.items()
        for temperature in temperatures
    ]
    by = {(row["loss"], row["temperature"]): row for row in rows}

    def of(key: str, name: str) -> list[float]:
        return [float(by[name, temperature][key]) for temperature in TEMPERATURES[name]]

    accuracy = of("accuracy", CONTRASTIVE)
    middle, simple, hard_simple = accuracy[2], of("accuracy", SIMPLE)[0], of("accuracy", HARD_SIMPLE)[0]
    if scale == "full":
        check_sane("accuracy on the contrastive loss's features", middle, SANITY)
    hard = of("accuracy", HARD)
    three = [accuracy[0], accuracy[2], accuracy[4]]
    effects = {
        "inside": middle - max(accuracy[0], accuracy[-1]),
        "uniformity": float(np.diff(of("uniformity", CONTRASTIVE)).min()),
        "tolerance": float(np.diff(of("tolerance", CONTRASTIVE)).min()),
        "simple": middle - simple,
        "hard simple": hard_simple - (simple + middle) / 2,
        "wide": (max(three) - min(three)) - (max(hard) - min(hard)),
    }
    return Evidence(rows, effects)


def figure(evidence: list[Evidence]) -> Figure:
    """Accuracy of each loss by temperature."""
    return arms_figure(evidence, x="temperature", y="accuracy", label="loss")
