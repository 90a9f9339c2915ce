"""iSogCLR on long-tailed images: temperatures of their own for frequent classes, better features than SimCLR's.

Set-up of the claim: the first 10,000 MNIST digits at 14 x 14 pixels take the place of Fashion-MNIST, 400 images of the
most frequent class and 8 of the rarest (ratio 50, geometric; which class is which is drawn by the seed), 1,119 in all.
A small convolutional network with a projection to 32 numbers, views that are turned, scaled and moved, Adam, 20 epochs,
batches of 64. A linear probe on the frozen features learns from 100 other images of each class and is tested on 200 of
each. Fourteen seeds.

Expected: iSogCLR is 0.5 to 3 points above SimCLR, and the mean temperature of the images of the three most frequent
classes is above that of the three rarest. The middle of the range is taken as the claim's size; the card gives the
temperatures no number, and .02 is taken. SogCLR (the same with one fixed temperature) stands beside them.

The baseline is fair: each loss has the best of three learning rates and of three temperatures (first temperatures, for
iSogCLR), by the probe's mean accuracy over two seeds that are not reported (:func:`choose`). rho is .3, gamma .8, beta
.9 and eta .01, as in the publication. SimCLR must reach 85%, which every seed checks.

As iSogCLR gains nothing here, rho .1 and 1 and eta .03 were tried at a first temperature of .1 on three seeds that are
not reported: 90.2, 90.3 and 89.3% beside 90.2% with the settings above, and 90.4% of SimCLR.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from ....core.pair_loss import PairLoss
from ....losses.contrastive.isogclr import ISogCLRLoss
from ....losses.contrastive.nt_xent import NTXentLoss
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...settings import PILOTS, best_setting, check_sane
from ...views import linear_probe, train_views

SEEDS = 14
SIMCLR, SOGCLR, ISOGCLR = "SimCLR", "SogCLR", "iSogCLR"
GRID = tuple((lr, tau) for lr in (3e-4, 1e-3, 3e-3) for tau in (0.1, 0.2, 0.5))
SETTINGS = {SIMCLR: (1e-3, 0.2), SOGCLR: (1e-3, 0.1), ISOGCLR: (1e-3, 0.1)}
"""Learning rate and (first) temperature of each loss: what :func:`choose` gives."""
SANITY = 85.0
"""Accuracy of the probe on SimCLR's features, in per cent."""
CLAIMS = (
    Claim(
        "gain",
        "the probe is at least half a point better on iSogCLR's features than on SimCLR's (0.5 to 3 points expected)",
        size=1.25,
        threshold=0.5,
    ),
    Claim("temperature", "frequent classes have larger temperatures than rare ones (.02 expected)", size=0.02),
)
Data = tuple[np.ndarray, ...]


def data_of(seed: int, scale: str) -> Data:
    """Long-tailed images and labels, a labelled part, a test part, and the classes from frequent to rare."""
    full = scale == "full"
    images, labels = mnist_10k() if full else load_digits(return_X_y=True)
    rng = np.random.default_rng([seed, 9])
    order = rng.permutation(10)
    largest, probe, test = (400, 100, 200) if full else (30, 10, 10)
    parts: list[list[np.ndarray]] = [[], [], []]
    for rank, label in enumerate(order):
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum([round(largest * 50 ** (-rank / 9)), probe, test])
        for chosen, own in zip(parts, np.split(rows[: ends[-1]], ends[:-1])):
            chosen.append(own)
    whole = [np.concatenate(chosen) for chosen in parts]
    small = halved(images) if full else images / 16
    return *(array[rows] for rows in whole for array in (small, labels)), order


def loss_of(name: str, tau: float, rows: int) -> PairLoss:
    """A loss with its (first) temperature."""
    if name == SIMCLR:
        return NTXentLoss(temperature=tau)
    return ISogCLRLoss(rows, tau_init=tau, eta=0.01 if name == ISOGCLR else 0.0)


def trained(name: str, lr: float, tau: float, seed: int, scale: str, data: Data) -> tuple[float, PairLoss]:
    """The probe's accuracy, and the loss with what it remembers."""
    loss = loss_of(name, tau, len(data[0]))
    full = scale == "full"
    network = train_views(
        data[0], data[1], loss, epochs=20 if full else 2, lr=lr, seed=seed, batch_size=64 if full else 32,
        dtype=torch.float32 if full else torch.float64,
    )  # fmt: skip
    return linear_probe(network[0], data[2], data[3], data[4], data[5]), loss


def choose() -> dict[str, tuple[float, float]]:
    """The setting of each loss with the best mean accuracy over seeds that are not reported."""
    data = {seed: data_of(seed, "full") for seed in PILOTS[:2]}
    return {
        name: best_setting(
            GRID, lambda s, seed, n=name: trained(n, s[0], s[1], seed, "full", data[seed])[0], PILOTS[:2]
        )
        for name in SETTINGS
    }


def run(scale: str, seed: int) -> Evidence:
    """Accuracy of a probe on the features of three losses, and temperatures of classes."""
    data = data_of(seed, scale)
    rows: list[dict[str, float | str]] = []
    gap = 0.0
    for name, (lr, tau) in SETTINGS.items():
        accuracy, loss = trained(name, lr, tau, seed, scale, data)
        means = [tau, tau]
        if isinstance(loss, ISogCLRLoss):
            of_samples = loss.get_submodule("memories.0").get_buffer("tau").double().numpy()
            means = [float(of_samples[np.isin(data[1], own)].mean()) for own in (data[6][:3], data[6][-3:])]
        if name == ISOGCLR:
            gap = means[0] - means[1]
        rows.append({"loss": name, "accuracy": accuracy, "frequent": means[0], "rare": means[1]})
    by_loss = {row["loss"]: float(row["accuracy"]) for row in rows}
    if scale == "full":
        check_sane("accuracy on SimCLR's features", by_loss[SIMCLR], SANITY)
    return Evidence(rows, {"gain": by_loss[ISOGCLR] - by_loss[SIMCLR], "temperature": gap})
