"""Guided batches beside random ones: how often images of one class meet, and what a linear probe makes of features.

Set-up of the claim: 1,200 of the first 10,000 MNIST digits at 14 x 14 pixels, in place of 10,000 of Fashion-MNIST; the
denoising autoencoder (with a border of a pixel, 16 x 16) learns 3 epochs, k-means cuts its codes into 64 clusters. A
small convolutional network with a projection to 32 numbers is trained by NT-Xent at temperature .1 with Adam for 300
steps, on random batches of 64, or on guided ones of 32 to 64 images, at most one a cluster; two views that are turned,
scaled and moved. A linear probe learns from the same images with their labels and is tested on 2,000 others. Twelve
seeds.

Expected: an anchor meets fewer images of its class, as a share of the others in its batch (random: a tenth; a
hundredth less is taken), and the probe is 0 to 2 points better (the middle is taken).

The baseline is fair: both arms have the best of two learning rates by the probe over two seeds that are not reported
(:func:`choose`). With random batches the probe must reach 85%, which every seed checks.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ....losses.contrastive.g_simclr import DenoisingAutoencoder, cluster_labels, guided_batches
from ....losses.contrastive.nt_xent import nt_xent_loss
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane
from ...views import encoder, linear_probe, random_view

SEEDS = 12
RANDOM, GUIDED = "random batches", "guided batches"
GRID = (1e-3, 3e-3)
RATES = {RANDOM: 0.001, GUIDED: 0.001}
"""What :func:`choose` gives."""
SANITY = 85.0
"""Accuracy of the probe with random batches, in per cent."""
CLAIMS = (
    Claim("collisions", "a smaller share of the others in a batch is of an anchor's class (a hundredth)", size=0.01),
    Claim("gain", "the probe is better with guided batches (0 to 2 points expected)", size=1.0),
)
BATCH = 64
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def data_of(seed: int, scale: str) -> Data:
    """Training and test images with their labels."""
    full = scale == "full"
    images, labels = mnist_10k() if full else load_digits(return_X_y=True)
    train, test = (1200, 2000) if full else (100, 60)
    rows = np.random.default_rng([seed, 29]).permutation(len(labels))[: train + test]
    x, y = halved(images[rows]) if full else images[rows] / 16, labels[rows]
    return x[:train], y[:train], x[train:], y[train:]


def clusters_of(x: np.ndarray, seed: int, scale: str) -> Tensor:
    """Clusters of the codes of an autoencoder that was trained on the images."""
    full = scale == "full"
    side = round(x.shape[1] ** 0.5)
    dtype = torch.float32 if full else torch.float64
    images = torch.as_tensor(x, dtype=dtype).unflatten(1, (1, side, side))
    if side % 8:
        images = nn.functional.pad(images, (1, 1, 1, 1))
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DenoisingAutoencoder(1).to(dtype)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, foreach=True)
        for _ in range(3 if full else 1):
            for rows in torch.randperm(len(images), generator=generator).split(BATCH):
                loss = (network(images[rows]) - images[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return cluster_labels(network, images.split(200), BATCH if full else 16, generator)


def trained(arm: str, lr: float, seed: int, scale: str, data: Data, clusters: Tensor) -> tuple[float, float]:
    """The probe's accuracy in per cent, and the share of an anchor's batch mates that are of its class."""
    full = scale == "full"
    steps, batch, least = (300, BATCH, BATCH // 2) if full else (10, 16, 8)
    dtype = torch.float32 if full else torch.float64
    images, labels = torch.as_tensor(data[0], dtype=dtype), torch.as_tensor(data[1])
    network = encoder(images.shape[1], seed, dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, foreach=True)
    batches: list[Tensor] = []
    shares = []
    for _ in range(steps):
        if not batches and arm == GUIDED:
            batches = guided_batches(clusters, batch, min_size=least, generator=generator)
        elif not batches:
            batches = [b for b in torch.randperm(len(images), generator=generator).split(batch) if len(b) == batch]
        rows = batches.pop(0)
        same = (labels[rows].unsqueeze(1) == labels[rows]).sum() - len(rows)
        shares.append(float(same) / (len(rows) * (len(rows) - 1)))
        both = random_view(images[rows].repeat(2, 1), generator)
        loss = nt_xent_loss(network(both).unflatten(0, (2, -1)), temperature=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return linear_probe(network[0], *data), float(np.mean(shares))


def choose() -> dict[str, float]:
    """The learning rate of each arm with the best probe over seeds that are not reported."""

    @functools.cache
    def start(seed: int) -> tuple[Data, Tensor]:
        data = data_of(seed, "full")
        return data, clusters_of(data[0], seed, "full")

    return {
        arm: best_setting(GRID, lambda lr, seed, a=arm: trained(a, lr, seed, "full", *start(seed))[0], PILOTS[:2])
        for arm in RATES
    }


def run(scale: str, seed: int) -> Evidence:
    """The probe and the collisions of both arms."""
    data = data_of(seed, scale)
    clusters = clusters_of(data[0], seed, scale)
    rows: list[dict[str, float | str]] = []
    for arm, lr in RATES.items():
        accuracy, share = trained(arm, lr, seed, scale, data, clusters)
        rows.append({"arm": arm, "accuracy": accuracy, "of the class": share})
    random, guided = rows
    if scale == "full":
        check_sane("the probe with random batches", float(random["accuracy"]), SANITY)
    fewer = float(random["of the class"]) - float(guided["of the class"])
    return Evidence(rows, {"collisions": fewer, "gain": float(guided["accuracy"]) - float(random["accuracy"])})


def figure(evidence: list[Evidence]) -> Figure:
    """Accuracy of the probe by kind of batches."""
    return bars_figure(evidence, y="accuracy")
