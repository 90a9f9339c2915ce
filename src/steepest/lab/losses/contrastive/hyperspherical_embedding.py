"""Digits that training has not seen, by nearest class means of embeddings of three losses.

Set-up of the claims: MNIST at 14 x 14 pixels in place of Fashion-MNIST; a small convolutional network with embeddings
of 32 numbers is trained on 2,000 images of the digits 0 to 4, 8 epochs of Adam in batches of 64; the digits 5 to 9 are
told apart by class means of 20 images each, 2,000 others being classified. The normalised softmax (scale 16) against a
softmax of linear scores, whose features are normalised afterwards, and a triplet loss with the hardest positive and
negative of the batch (margin .2 of distances on the sphere). The publication's claim is a better accuracy on new
classes; a trial of ours on scikit-learn's digits gave .728, .642 (triplets) and .572 (softmax): half of these
differences are taken as the size. The joint protocol, where the five known digits compete too (by their class vectors),
is lower than the disjoint one on the same images, by a point.

Each loss has the best of three rates by the disjoint accuracy on two seeds that are not reported
(:func:`choose_rates`). The plain softmax must reach 45%, where chance gives 20%.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import relu

from ....core.objective import Objective
from ....core.pair_loss import PairLoss
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....losses.contrastive.hyperspherical_embedding import NormalizedSoftmaxLoss, novel_class_accuracy
from ...data import digits, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...identities import embed, train_cosines
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 24
SPHERE, PLAIN, TRIPLETS = "normalised softmax", "softmax", "triplets"
KNOWN, SUPPORT = 5, 20
GRID = (1e-3, 3e-3, 1e-2)
SANITY = 45.0
"""Accuracy of the plain softmax on new digits, in per cent."""
CLAIMS = (
    Claim("triplets", "on new digits the normalised softmax is above triplets (4 points)", size=4.0),
    Claim("softmax", "on new digits the normalised softmax is above a plain softmax (8 points)", size=8.0),
    Claim("joint", "where known digits compete new ones are told less well (1 point)", size=1.0, greater=False),
)


class HardestTriplets(PairLoss):
    """max(0, d(positive) - d(negative) + .2) of the hardest of each row of a batch, by distances on the sphere."""

    name = "hardest_triplets"

    def batch_loss(self, outputs: Tensor, target: Tensor, **needs: Any) -> Tensor:
        """The mean over rows."""
        rows = torch.nn.functional.normalize(outputs, dim=1)
        distance = (2 - 2 * rows @ rows.T).clamp_min(1e-9).sqrt()
        same = target.unsqueeze(1) == target
        positive = torch.where(same, distance, 0.0).amax(1)
        return relu(positive - torch.where(same, 4.0, distance).amin(1) + 0.2).mean()


ARMS: dict[str, tuple[type[Objective], dict[str, Any]]] = {
    SPHERE: (NormalizedSoftmaxLoss, {}),
    PLAIN: (CrossEntropyLoss, {}),
    TRIPLETS: (HardestTriplets, {}),
}
RATES: dict[str, float] = {"normalised softmax": 0.001, "softmax": 0.001, "triplets": 0.01}
"""The rate of each loss: what :func:`choose_rates` gives."""


def run(scale: str, seed: int) -> Evidence:
    """Accuracy on new digits by each loss, and of the normalised softmax where known ones compete."""
    rows: list[dict[str, Any]] = [{"arm": arm, **measure(arm, RATES[arm], scale, seed)} for arm in ARMS]
    value = {row["arm"]: row["disjoint"] for row in rows}
    if scale == "full":
        check_sane("accuracy of the plain softmax on new digits", value[PLAIN], SANITY)
    joint = rows[0]["joint"] - rows[0]["disjoint"]
    effects = {"triplets": value[SPHERE] - value[TRIPLETS], "softmax": value[SPHERE] - value[PLAIN], "joint": joint}
    return Evidence(rows, effects)


@cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    x, y = mnist_10k()
    return halved(x), y


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, float]:
    """Accuracy on new digits in both protocols, in per cent."""
    full = scale == "full"
    dtype = torch.float32 if full else torch.float64
    x, y = _images() if full else digits(seed)[:2]
    order = np.random.default_rng(seed).permutation(len(x))
    images, labels = torch.as_tensor(x[order], dtype=dtype), torch.as_tensor(y[order])
    known = labels < KNOWN
    count = 2000 if full else 60
    seen, seen_labels = images[known][:count], labels[known][:count]
    unseen, truth = images[~known], labels[~known]
    support = torch.cat([(truth == digit).nonzero()[:SUPPORT, 0] for digit in range(KNOWN, 10)])
    query = torch.ones(len(truth), dtype=torch.bool).index_fill(0, support, False).nonzero()[:count, 0]
    objective, hyper = ARMS[arm]
    epochs = 8 if full else 2
    encoder, head, _ = train_cosines(seen, seen_labels, objective, hyper, epochs=epochs, lr=rate, seed=seed)
    given = embed(encoder, unseen[support]), truth[support], embed(encoder, unseen[query]), truth[query]
    row = {"disjoint": 100 * novel_class_accuracy(*given)}
    if arm == SPHERE:
        vectors = head.weight.detach().double()  # type: ignore[operator]
        places = torch.arange(KNOWN)
        row["joint"] = 100 * novel_class_accuracy(*given, protocol="joint", known=vectors, known_labels=places)
    return row


def choose_rates() -> dict[str, float]:
    """The rate of each loss with the best mean accuracy on new digits over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)["disjoint"], pilots)
        for arm in ARMS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy on new digits by loss."""
    return bars_figure(evidence, y="disjoint")
