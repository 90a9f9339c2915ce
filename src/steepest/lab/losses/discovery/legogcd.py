"""SimGCD and LegoGCD on digits of five known and five new classes.

Set-up of the claim: 1,500 digits of MNIST at half resolution. Five classes, drawn by the seed, are known, half of their
digits labeled; everything else is unlabeled. A small convolutional network is trained on the labeled digits alone for
10 epochs, then with a head of cosines and a projection for 12 epochs on two random views of each digit by SimGCD or by
LegoGCD. The weights, temperatures, threshold and momentum are the published ones; the teacher's temperature falls over
3 epochs, a quarter of them (of 200 it is 30). AdamW with a cosine schedule, batches of 128. Measured on the unlabeled
digits of the training set: how many of known classes get their own class, and how many of new ones do under the best
matching of clusters and classes of all of them.

The publication gains several points on known classes (7.7 on CUB) and a little on new ones. Claimed are three points on
known classes, and that new classes lose less than a point. Accuracy on known classes is under the matching of all
clusters and classes, as published; as here the matching often gives a known class another one's cluster, a claim of
ours takes the classes as they are (it was the only one in a first record, of 28 seeds, made after pilots in which
LegoGCD was below by the published measure). Seeds find five points on new classes, not one.

LegoGCD is below SimGCD by the published measure. The loss was read beside the official code, term by term, and agrees;
of four rates none brings it above on the pilots. A small network that is trained from nothing for 12 epochs is far from
the pretrained ones of the publication, whose clusters are good before this loss begins.

Each loss has the best of four rates by accuracy on all unlabeled digits, on two seeds that are not reported
(:func:`choose_rates`). SimGCD, the baseline, must reach 70% on known classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....core.clusterings import matched_clusters
from ....core.heads import NormedLinear
from ....losses.discovery.legogcd import LegoGCDLoss, SimGCDLoss
from ...classify import small_cnn
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import UNREPORTED, best_setting, check_sane
from ...views import random_view

SEEDS = 28
SIMGCD, LEGO = "SimGCD", "LegoGCD"
ARMS = (SIMGCD, LEGO)
ROWS, EPOCHS, BATCH, OLD, CLASSES = 1500, 12, 128, 5, 10
GRID = (3e-4, 1e-3, 3e-3, 1e-2)
RATES = {SIMGCD: 1e-3, LEGO: 1e-3}
"""The rate of each loss: what :func:`choose_rates` gives."""
SANITY = 70.0
CLAIMS = (
    Claim("known, matched", "LegoGCD is above SimGCD on known classes, matched with all (three points)", size=3.0),
    Claim("new", "and loses less than a point on new ones (five points above that)", size=5.0, threshold=-1.0),
    Claim("known", "it is above SimGCD on known classes as they are, by three points", size=3.0, ours=True),
)


def loss_of(arm: str, warmup: int) -> SimGCDLoss:
    """The loss of an arm."""
    if arm == SIMGCD:
        return SimGCDLoss(CLASSES, warmup_epochs=warmup)
    return LegoGCDLoss(OLD, CLASSES, warmup_epochs=warmup)


def digits(seed: int, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images, classes (known ones 0 to 4) and which are labeled."""
    rng = np.random.default_rng(seed)
    if full:
        x, y = mnist_10k()
        order = rng.permutation(len(x))[:ROWS]
        x, y = halved(x[order]), y[order]
    else:
        y = np.arange(60) % CLASSES
        x = rng.random((60, 196)) + np.eye(CLASSES)[y].repeat(20, 1)[:, :196]
    names = rng.permutation(CLASSES)
    y = np.argsort(names)[y]
    labeled = (y < OLD) & (rng.random(len(y)) < 0.5)
    return (
        torch.as_tensor(x, dtype=torch.float32 if full else torch.float64),
        torch.as_tensor(y),
        torch.as_tensor(labeled),
    )


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, float]:
    """Accuracy on unlabeled digits of known classes, new classes and all, in per cent."""
    full = scale == "full"
    x, y, labeled = digits(seed, full)
    epochs, size = (EPOCHS, BATCH) if full else (2, 30)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = small_cnn(x.shape[1]).to(x)
        head, projection = NormedLinear(64, CLASSES).to(x), nn.Linear(64, 32).to(x)
    generator = torch.Generator().manual_seed(seed)
    pretrained = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(10 if full else 1):
        for rows in labeled.nonzero().squeeze(1)[torch.randperm(int(labeled.sum()), generator=generator)].split(64):
            logits = head(body(random_view(x[rows], generator)))[:, :OLD] / 0.1
            pretrained.zero_grad()
            nn.functional.cross_entropy(logits, y[rows]).backward()
            pretrained.step()
    loss = loss_of(arm, max(epochs // 4, 1))
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters(), *projection.parameters()], lr=rate)
    steps = epochs * (len(x) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        loss.start_epoch(epoch + 1, epochs)
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if len(rows) < size:
                continue
            features = body(random_view(x[rows].repeat(2, 1), generator))
            value = loss(head(features), projection(features), y[rows], labeled[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        clusters = head(body(x)).argmax(1)[~labeled]
    right = matched_clusters(clusters, y[~labeled]) == y[~labeled]
    known = y[~labeled] < OLD
    return {
        "known": 100 * float((clusters == y[~labeled])[known].double().mean()),
        "known, matched": 100 * float(right[known].double().mean()),
        "new": 100 * float(right[~known].double().mean()),
        "all": 100 * float(right.double().mean()),
    }


def run(scale: str, seed: int) -> Evidence:
    """Accuracies of each loss."""
    rows: list[dict[str, Any]] = [
        {"arm": arm, "rate": RATES[arm], **measure(arm, RATES[arm], scale, seed)} for arm in ARMS
    ]
    of = {row["arm"]: row for row in rows}
    if scale == "full":
        check_sane("accuracy of SimGCD on known classes", of[SIMGCD]["known"], SANITY)
    return Evidence(rows, {name: of[LEGO][name] - of[SIMGCD][name] for name in ("known, matched", "new", "known")})


def choose_rates() -> dict[str, float]:
    """The rate of each loss with the best accuracy on all unlabeled digits of two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)["all"], pilots)
        for arm in ARMS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy on known classes, matched."""
    return bars_figure(evidence, y="known, matched")
