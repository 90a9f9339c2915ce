"""Group ordering beside the contrastive loss: nearest neighbours and a linear probe on the features.

Set-up of the claim: 1,500 of the first 10,000 MNIST digits at 14 x 14 pixels, in place of 10,000 of Fashion-MNIST; a
small convolutional network with a projection to 32 numbers with batch norm (without it GroCo's k-NN is 72 to 73% on a
seed that is not reported), two views that are turned, scaled and moved, Adam, 12 epochs in batches of 64, the same for
both losses. GroCo has the ten nearest negatives, and constants for positives and negatives, as published. On the
frozen features of 2,000 other images the vote of the 20 nearest training images (by cosine, with their labels) and a
linear probe are measured, in per cent. Twenty-six seeds; a first record with eight could not tell a point.

Expected: k-NN of GroCo at most a point below NT-Xent's or up to three above; the publication has it above at equal
training, for which a point is taken; its linear probe is similar, at most a point below.

The baseline is fair: each loss has the best of two learning rates and three temperatures (of GroCo: three
steepnesses, among them the official code's 1) by k-NN over two seeds that are not reported (:func:`choose`). NT-Xent
must reach 80% by k-NN, which every seed checks.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from ....core.pair_loss import PairLoss
from ....losses.contrastive.groco import GroCoLoss
from ....losses.contrastive.nt_xent import NTXentLoss
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane
from ...views import features, linear_probe, train_views

SEEDS = 26
NT_XENT, GROCO = "NT-Xent", "GroCo"
RATES = (1e-3, 3e-3)
SHARPNESS = {NT_XENT: (0.1, 0.2, 0.5), GROCO: (0.5, 1.0, 5.0)}
"""Temperatures of the one loss, steepnesses of the other."""
SETTINGS = {NT_XENT: (3e-3, 0.1), GROCO: (3e-3, 1.0)}
"""Learning rate, and temperature or steepness: what :func:`choose` gives."""
SANITY = 80.0
"""Accuracy of NT-Xent's nearest neighbours, in per cent."""
CLAIMS = (
    Claim("near", "k-NN is at most a point below NT-Xent's (from a point below to three above)", 1.0, threshold=-1.0),
    Claim("above", "k-NN is above NT-Xent's at equal training (a point expected)", size=1.0),
    Claim("probe", "a linear probe is at most a point below NT-Xent's", size=1.0, threshold=-1.0),
)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def data_of(seed: int, scale: str) -> Data:
    """Training and test images with their labels."""
    full = scale == "full"
    images, labels = mnist_10k() if full else load_digits(return_X_y=True)
    train, test = (1500, 2000) if full else (128, 100)
    rows = np.random.default_rng([seed, 17]).permutation(len(labels))[: train + test]
    x, y = halved(images[rows]) if full else images[rows] / 16, labels[rows]
    return x[:train], y[:train], x[train:], y[train:]


def loss_of(name: str, sharpness: float) -> PairLoss:
    """A loss with its temperature or steepness."""
    if name == NT_XENT:
        return NTXentLoss(temperature=sharpness)
    return GroCoLoss(
        steepness=sharpness,
    )


def neighbours(body: nn.Module, data: Data) -> float:
    """Accuracy of the vote of the 20 nearest training images, in per cent."""
    vote = KNeighborsClassifier(20, metric="cosine").fit(features(body, data[0]), data[1])
    return 100 * float(vote.score(features(body, data[2]), data[3]))


def trained(name: str, lr: float, sharpness: float, seed: int, scale: str, data: Data) -> nn.Module:
    """The body of a network that a loss has trained."""
    full = scale == "full"
    network = train_views(
        data[0], data[1], loss_of(name, sharpness), epochs=12 if full else 2, lr=lr, seed=seed, batch_size=64,
        dtype=torch.float32 if full else torch.float64, normed=True,
    )  # fmt: skip
    body = network[0]
    assert isinstance(body, nn.Module)
    return body


def choose() -> dict[str, tuple[float, float]]:
    """The setting of each loss with the best k-NN over seeds that are not reported."""
    data = {seed: data_of(seed, "full") for seed in PILOTS[:2]}
    return {
        name: best_setting(
            [(lr, sharpness) for lr in RATES for sharpness in SHARPNESS[name]],
            lambda s, seed, n=name: neighbours(trained(n, s[0], s[1], seed, "full", data[seed]), data[seed]),
            PILOTS[:2],
        )
        for name in SHARPNESS
    }


def run(scale: str, seed: int) -> Evidence:
    """Nearest neighbours and a linear probe on the features of each loss."""
    data = data_of(seed, scale)
    rows: list[dict[str, float | str]] = []
    for name, (lr, sharpness) in SETTINGS.items():
        body = trained(name, lr, sharpness, seed, scale, data)
        rows.append({"loss": name, "k-NN": neighbours(body, data), "probe": linear_probe(body, *data)})
    by_loss = {str(row["loss"]): row for row in rows}
    if scale == "full":
        check_sane("k-NN of NT-Xent", float(by_loss[NT_XENT]["k-NN"]), SANITY)
    gain, probe = (float(by_loss[GROCO][k]) - float(by_loss[NT_XENT][k]) for k in ("k-NN", "probe"))
    return Evidence(rows, {"near": gain, "above": gain, "probe": probe})


def figure(evidence: list[Evidence]) -> Figure:
    """k-NN accuracy by loss."""
    return bars_figure(evidence, y="k-NN", label="loss")
