"""Orthogonal projection: classes nearer to orthogonal, hence more accurate, above all with noisy labels.

MNIST digits, pooled to 14 x 14, take the place of Fashion-MNIST: 2,000 to train, 5,000 to test, a small CNN, 15 epochs
in batches of 100. Clean labels: cross-entropy against cross-entropy with the penalty (lambda 1, gamma .5). 40%
symmetric noise (labels replaced by another class): the official code adds the penalty to the truncated loss there, with
lambda .1 and gamma 2, so this pair decides the claim of the publication; cross-entropy with the penalty of the clean
labels runs beside it as an expectation of ours (before, it stood for the claim). The truncated loss is the generalised
cross-entropy with q = .7, and without rows whose label has a probability of at most .5 once a third of the epochs is
over; the official code renews this choice of rows every ten epochs, here it is that of the step.

Expected: |cosine| of test features of different classes falls from about .3 to below .1 (clean labels), accuracy rises
by 0.2 to 1 point with clean and by 1 to 5 points with noisy labels. The size of a claimed gain is the middle of its
range; that of "below .1" is .05. Attacks, for which the claim has no number, are left out.

The baselines are fair: every arm has the learning rate of :data:`GRID` with which it is most accurate on the test rows
of three seeds that are not reported (:func:`choose_rates`), and cross-entropy on clean labels must reach an accuracy of
92%, which every seed checks. Eight seeds found a gain with clean labels of 0.61 [0.24, 0.97] and, when the loss summed
in another order, of 0.66 [0.14, 1.18], which could have missed the claimed size: hence 28.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split
from torch import Tensor

from ....core.objective import Objective, WithPenalty
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....losses.classification.orthogonal_projection import CrossEntropyWithOPL, OrthogonalProjectionLoss
from ...classify import Arm, small_cnn, train
from ...data import digits, flip_labels, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

SEEDS = 28
NOISE = 0.4
SANITY = 92.0
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
CLAIMS = (
    Claim(
        "cosine",
        "clean labels: |cosine| between classes is below .1 with the penalty",
        size=0.05,
        threshold=0.1,
        greater=False,
    ),
    Claim("fall", "clean labels: |cosine| between classes is lower than cross-entropy's (by .2 expected)", size=0.2),
    Claim(
        "clean",
        "clean labels: accuracy is at least 0.2 points above cross-entropy's (0.2 to 1 expected)",
        size=0.4,
        threshold=0.2,
    ),
    Claim(
        "noisy",
        "40% wrong labels: the penalty adds at least 1 point of accuracy to the truncated loss (1 to 5 expected)",
        size=2.0,
        threshold=1.0,
    ),
    Claim(
        "noisy, cross-entropy",
        "40% wrong labels: it adds at least 1 point to cross-entropy",
        size=2.0,
        threshold=1.0,
        ours=True,
    ),
)


class TruncatedLoss(Objective):
    """(1 - p^q) / q of the label's probability p; after a third of the epochs, of rows with p above k alone."""

    name = "truncated"
    tasks = ("binary", "multiclass")
    domain = "logits"

    def __init__(self, q: float = 0.7, k: float = 0.5) -> None:
        super().__init__("mean")
        self.q, self.k, self.prunes = q, k, False

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Rows are left out in the last two thirds."""
        self.prunes = epoch > epochs // 3

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean over the batch of logits ``[B, C]`` and labels ``[B]``."""
        p = outputs.softmax(1).gather(1, target[:, None]).squeeze(1)
        loss = (1 - p.clamp_min(1e-6) ** self.q) / self.q
        return (loss * (p.detach() > self.k)).mean() if self.prunes else loss.mean()


class TruncatedWithOPL(WithPenalty):
    """The truncated loss with the penalty as the official code weighs it."""

    def __init__(self) -> None:
        super().__init__(TruncatedLoss(), OrthogonalProjectionLoss(gamma=2.0), 0.1)


CE, WITH, TRUNCATED, TRUNCATED_WITH = "cross-entropy", "with penalty", "truncated", "truncated, with penalty"
LOSSES: dict[str, type[Objective]] = {
    CE: CrossEntropyLoss,
    WITH: CrossEntropyWithOPL,
    TRUNCATED: TruncatedLoss,
    TRUNCATED_WITH: TruncatedWithOPL,
}
RATES = {
    (CE, "clean"): 1e-2,
    (WITH, "clean"): 1e-2,
    (CE, "noisy"): 1e-3,
    (WITH, "noisy"): 3e-3,
    (TRUNCATED, "noisy"): 1e-2,
    (TRUNCATED_WITH, "noisy"): 1e-2,
}
"""The rate of each arm: what :func:`choose_rates` gives."""
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def run(scale: str, seed: int) -> Evidence:
    """Accuracy and cosines between classes, with clean and with noisy labels."""
    full = scale == "full"
    data = images(seed) if full else digits(seed, train=300)
    arms = {arm: Arm(", ".join(arm), LOSSES[arm[0]], lr=rate) for arm, rate in RATES.items()}
    fit(arms, data, 15 if full else 2, seed)
    rows: list[dict[str, float | str]] = []
    for (loss, labels), arm in arms.items():
        alike, apart = cosines(arm.features[:2000], torch.as_tensor(data[3][:2000]))
        rows.append(
            {
                "arm": arm.label,
                "loss": loss,
                "labels": labels,
                "accuracy": 100 * arm.accuracy(data[3]),
                "cosine within": alike,
                "cosine between": apart,
            }
        )
    accuracy = {key: float(row["accuracy"]) for key, row in zip(arms, rows)}
    between = {key: float(row["cosine between"]) for key, row in zip(arms, rows)}
    if full:
        check_sane("accuracy of cross-entropy, clean labels", accuracy[CE, "clean"], SANITY)
    effects = {
        "cosine": between[WITH, "clean"],
        "fall": between[CE, "clean"] - between[WITH, "clean"],
        "clean": accuracy[WITH, "clean"] - accuracy[CE, "clean"],
        "noisy": accuracy[TRUNCATED_WITH, "noisy"] - accuracy[TRUNCATED, "noisy"],
        "noisy, cross-entropy": accuracy[WITH, "noisy"] - accuracy[CE, "noisy"],
    }
    return Evidence(rows, effects)


def choose_rates() -> dict[tuple[str, str], float]:
    """The rate with the best mean test accuracy over the pilot seeds, for each arm."""

    def accuracy(arm: tuple[str, str], rate: float, seed: int) -> float:
        data = images(seed)
        tried = {arm: Arm(", ".join(arm), LOSSES[arm[0]], lr=rate)}
        fit(tried, data, 15, seed)
        return tried[arm].accuracy(data[3])

    return {arm: best_setting(GRID, lambda rate, seed, arm=arm: accuracy(arm, rate, seed)) for arm in RATES}


def fit(arms: dict[tuple[str, str], Arm], data: Data, epochs: int, seed: int) -> None:
    """Train arms on their labels, in place."""
    noisy = flip_labels(data[1], NOISE, seed)[0]
    own = [replace(arm, target=noisy) if labels == "noisy" else arm for (_, labels), arm in arms.items()]
    train(own, data, epochs=epochs, seed=seed, batch_size=100, backbone=small_cnn, alone=True)
    arms.update(zip(arms, own))


def images(seed: int) -> Data:
    """2,000 of the 10,000 digits to train, 5,000 others to test, pixels in [-1, 1]."""
    x, y = mnist_10k()
    x = 2 * halved(x) - 1
    train, test = train_test_split(np.arange(len(y)), train_size=2000, test_size=5000, stratify=y, random_state=seed)
    return x[train], y[train], x[test], y[test]


def cosines(features: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean |cosine| of pairs of one class, and of pairs of different classes.

    >>> cosines(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0, 1]))
    (1.0, 0.0)
    """
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    cosine = (unit @ unit.mT).abs()
    alike = y.unsqueeze(1) == y
    itself = torch.eye(len(y), dtype=torch.bool)
    return float(cosine[alike & ~itself].mean()), float(cosine[~alike].mean())


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy by loss and labels."""
    return bars_figure(evidence, y="accuracy")
