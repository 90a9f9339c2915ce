"""Whether rare classes sit on saddles of their own loss, and a large radius of SAM takes a network off them.

Set-up of the claim: images with exponential class counts from 500 to 5; cross-entropy with deferred re-weighting (DRW,
beta 0.9999, from 80% of the epochs on); SGD with momentum 0.9 and a weight decay of 2e-4 in batches of 128, with and
without SAM. MNIST digits, pooled to 14 x 14, take the place of Fashion-MNIST: 1,242 train, 300 others of each class
test; which class is rare is drawn by the seed. An MLP of 2 x 64 is trained for 50 epochs; the rate drops at 80% and at
90% by 10 (published: 200 epochs and twice by 100, where the last fifth has far more steps). Spectra are those of plain
cross-entropy of each class's training samples at the end, by 50 products.

Both arms have the rate of four with the best mean balanced accuracy over two seeds that are not reported, and SAM with
it the radius of four from 0.05 to 0.8, as the card says: the baseline is fair but for that radius. SGD must reach a
balanced accuracy of 70%, which every seed checks. Eigenvalues fall with the loss that is left, and so with the rate:
those of SAM stand beside those of SGD at SAM's rate, a third arm where the rates differ.

Claims are the card's: the mean saddle ratio of the three rarest classes is above that of the three most frequent (of
SGD at its best); with SAM the smallest eigenvalue of the three rarest is nearer to 0 (mean of logarithms of its size);
mean accuracy of these is higher by a few points (size: 2), and that of the three most frequent falls by less than 2
points. The card has no number for the first two: sizes are 0.02 and 1, which is a factor of 2.7. Of three pilot seeds
the standard deviations were 0.01, 1.5, 3 points and 0.6 points. With SAM the largest eigenvalues of rare classes fall
even more than the smallest, so that their saddle ratio does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ....descent.batches import seeded
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....losses.classification.ldam import DeferredReweighting
from ....nn.networks import Network, mlp
from ....optim.sharpness.sam import SAM
from ....watch.curvature.saddle_imbalance import classwise_hessian, saddle_ratio
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane

SEEDS = 18
LARGEST, RATIO, TEST, WIDTH, EPOCHS, BATCH, PRODUCTS, ENDS = 500, 100, 300, 64, 50, 128, 50, 3
RATES = (0.003, 0.02, 0.1, 0.4)
RADII = (0.05, 0.125, 0.3, 0.8)
SANITY = 70.0
BESIDE = "SGD at SAM's rate"
CLAIMS = (
    Claim("saddle", "the saddle ratio of the 3 rarest classes is above that of the 3 most frequent", size=0.02),
    Claim("escape", "SAM brings the smallest eigenvalue of the 3 rarest nearer to 0 (logarithm)", 1.0, greater=False),
    Claim("tail", "SAM raises the mean accuracy of the 3 rarest (by a few points)", size=2.0),
    Claim("head", "and that of the 3 most frequent falls by less than 2 points", size=2.0, threshold=-2.0),
)

Parts = tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray]
Setting = tuple[float, float]
"""Rate and radius; 0 is SGD."""


def run(scale: str, seed: int) -> Evidence:
    """Spectra and accuracies of frequent and rare classes, with SGD and with SAM."""
    full = scale == "full"
    settings = settings_of() if full else {"SGD": (0.03, 0.0), "SAM": (0.1, 0.1)}
    parts = long_tail(full, seed)
    x, y, _, _, counts = parts
    order = np.argsort(-counts, kind="stable")
    ends = {"frequent": order[:ENDS].tolist(), "rare": order[-ENDS:].tolist()}
    rows: list[dict[str, Any]] = []
    if settings["SAM"][0] != settings["SGD"][0]:
        settings = settings | {BESIDE: (settings["SAM"][0], 0.0)}
    for arm, setting in settings.items():
        model, recall = trained(parts, setting, EPOCHS if full else 2, seed)
        spectra = classwise_hessian(model, (x, y), [*ends["frequent"], *ends["rare"]], PRODUCTS if full else 4)
        for place, classes in ends.items():
            own = [spectra[label] for label in classes]
            rows.append(
                {
                    "arm": arm,
                    "classes": place,
                    "rate": setting[0],
                    "radius": setting[1],
                    "accuracy": float(recall[classes].mean()),
                    "balanced accuracy": float(recall.mean()),
                    "largest": float(np.mean([spectrum.lam_max for spectrum in own])),
                    "smallest": float(np.mean([spectrum.lam_min for spectrum in own])),
                    "saddle ratio": float(np.mean([saddle_ratio(spectrum) for spectrum in own])),
                    "log depth": float(np.mean([math.log(max(-spectrum.lam_min, 1e-12)) for spectrum in own])),
                    "slope": float(np.mean([spectrum.slope for spectrum in own])),
                    "loss": float(np.mean([spectrum.loss for spectrum in own])),
                    "samples": sum(spectrum.count for spectrum in own),
                }
            )
    of = {(row["arm"], row["classes"]): row for row in rows}
    if full:
        check_sane("balanced accuracy of SGD", of["SGD", "rare"]["balanced accuracy"], SANITY)
    beside = of[BESIDE if BESIDE in settings else "SGD", "rare"]
    effects = {
        "saddle": of["SGD", "rare"]["saddle ratio"] - of["SGD", "frequent"]["saddle ratio"],
        "escape": of["SAM", "rare"]["log depth"] - beside["log depth"],
        "tail": of["SAM", "rare"]["accuracy"] - of["SGD", "rare"]["accuracy"],
        "head": of["SAM", "frequent"]["accuracy"] - of["SGD", "frequent"]["accuracy"],
    }
    return Evidence(rows, effects)


@cache
def settings_of() -> dict[str, Setting]:
    """Rate and radius of each arm with the best mean balanced accuracy over two pilot seeds."""
    parts = {seed: long_tail(True, seed) for seed in PILOTS[:2]}

    def score(setting: Setting, seed: int) -> float:
        return float(trained(parts[seed], setting, EPOCHS, seed)[1].mean())

    grids = {"SGD": [(rate, 0.0) for rate in RATES], "SAM": [(rate, rho) for rate in RATES for rho in RADII]}
    return {arm: best_setting(grid, score, PILOTS[:2]) for arm, grid in grids.items()}


def long_tail(full: bool, seed: int) -> Parts:
    """``(x, y, x_test, y_test, counts)``: exponential counts over classes in random order, a balanced test."""
    x, y = mnist_10k() if full else load_digits(return_X_y=True)
    x = halved(x) if full else x / 16
    rng = np.random.default_rng([seed, 17])
    largest, held = (LARGEST, TEST) if full else (40, 20)
    counts = np.maximum(np.round(largest * RATIO ** (-rng.permutation(10) / 9.0)), 2).astype(np.int64)
    own, held_rows = [], []
    for label, count in enumerate(counts):
        rows = rng.permutation(np.flatnonzero(y == label))
        held_rows.append(rows[:held])
        own.append(rows[held : held + count])
    train, test = np.concatenate(own), np.concatenate(held_rows)
    mean, scale = x[train].mean(), x[train].std()
    inputs = torch.as_tensor((x - mean) / scale, dtype=torch.float32 if full else torch.float64)
    labels = torch.as_tensor(y)
    return inputs[train], labels[train], inputs[test], labels[test], counts


def trained(parts: Parts, setting: Setting, epochs: int, seed: int) -> tuple[nn.Module, np.ndarray]:
    """A network after so many epochs, and its test recall of each class in percent."""
    x, y, x_test, y_test, counts = parts
    rate, radius = setting
    objective = DeferredReweighting(CrossEntropyLoss(), counts.tolist())
    torch.manual_seed(seed)
    model = Network(mlp(x.shape[1], width=WIDTH), nn.Linear(WIDTH, len(counts))).to(x.dtype)
    optimizer: Optimizer = SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=2e-4)
    if radius:
        optimizer = SAM(optimizer, rho=radius)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [int(0.8 * epochs * steps), int(0.9 * epochs * steps)], gamma=0.1
    )
    for epoch in range(1, epochs + 1):
        objective.start_epoch(epoch, epochs)
        for rows in torch.randperm(len(x), generator=seeded(seed, epoch)).split(BATCH):

            def closure(rows: Tensor = rows) -> Tensor:
                optimizer.zero_grad()
                loss: Tensor = objective(model(x[rows]), y[rows])
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
            schedule.step()
    with torch.no_grad():
        right = objective.predict(model(x_test)) == y_test
    return model, 100 * np.array([float(right[y_test == label].double().mean()) for label in range(len(counts))])


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Saddle ratios of frequent and of rare classes."""
    named = [Evidence([{**row, "arm": f"{row['arm']}, {row['classes']}"} for row in one.rows], {}) for one in evidence]
    drawn: Figure = bars_figure(named, y="saddle ratio")
    return drawn
