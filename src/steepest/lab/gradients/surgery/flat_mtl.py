"""Flat regions for each task against the aggregator alone, on two overlaid digits.

Set-up of the claim, smaller: of the 10,000 MNIST test digits at 14 x 14 pixels (card: Fashion-MNIST at 28 x 28), two
lie over each other in opposite corners of a canvas of 18 x 18, where the brighter pixel counts; each is to be named.
1,500 canvases train, 1,000 choose rates, 2,500 test; one training label in five of the second digit is wrong. A LeNet
(8 and 16 channels, 64 units, a linear head a task), 20 epochs of Adam in batches of 50, its rate falling to 0 along a
cosine; mean, PCGrad and MGDA, alone and with flat regions (rho = 0.05, losses and flatness aggregated apart). All arms
of a seed have one initial network, the same canvases and batches.

Claims, from the card's "an average test gain near 0.5 to 2 points and smaller loss rise under a perturbation of radius
0.05": the accuracy of both tasks, averaged over the three aggregators, is higher with flat regions (size: 1.25 points,
the middle), and the training loss of both tasks rises less along its gradient within 0.05 (size: a fifth of the rise
without; the card has no number).

The baseline is fair: each arm takes the best of the rates :data:`GRID` by the mean accuracy of both tasks on the 1,000
canvases of two seeds that are not reported (:func:`choose_rates`); the mean alone must reach 80% on the task without
noise, which every seed checks.

The gain is contradicted here. What was checked, on one draw that is not reported, with the mean at a rate of 0.005:
after 16 epochs flat regions are 1.4 points ahead on the clean task and 2.7 behind on the noisy one (at a fifth of the
radius 1.3), where they have also learned fewer of the training labels, 63 against 67%; after 48 epochs they are 0.8
ahead and level. So they fit more slowly, and 20 epochs end before that is made up for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ....core.displaced import ascent, displaced
from ....gradients.aggregation.mgda import MGDA
from ....gradients.aggregation.simple import Mean
from ....gradients.joint import backward
from ....gradients.surgery.flat_mtl import FlatMTL
from ....gradients.surgery.pcgrad import PCGrad
from ...data import halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

AGGREGATORS = {"mean": Mean, "PCGrad": PCGrad, "MGDA": MGDA}
RADIUS, NOISE, BATCH = 0.05, 0.2, 50
EPOCHS, SEEDS, PILOTS = 20, 6, (101, 102)
GRID = (2e-3, 5e-3, 1e-2)
RATES = {"mean": 5e-3, "PCGrad": 5e-3, "MGDA": 5e-3, "flat mean": 5e-3, "flat PCGrad": 5e-3, "flat MGDA": 1e-2}
"""What :func:`choose_rates` gives."""
SANITY = 80.0
CLAIMS = (
    Claim("gain", "with flat regions accuracy is higher, on average over aggregators and tasks, in points", size=1.25),
    Claim("flatter", "the loss rises less within a radius of 0.05, in percent of its rise without", size=20.0),
)
Canvases = tuple[Tensor, Tensor]


def run(scale: str, seed: int) -> Evidence:
    """Accuracy of both tasks, and how far the loss rises nearby, for each arm."""
    full = scale == "full"
    train, _, test = canvases(seed, full)
    rows: list[dict[str, Any]] = []
    for arm, rate in RATES.items():
        model = fit(arm, rate, train, seed, EPOCHS if full else 1)
        first, second = accuracies(model, test)
        rows.append({"arm": arm, "rate": rate, "first": first, "second": second, "rise": rise(model, train)})
    by_arm = {row["arm"]: row for row in rows}
    if full:
        check_sane("accuracy of the mean on the task without noise", by_arm["mean"]["first"], SANITY)
    gains, flatter = [], []
    for name in AGGREGATORS:
        alone, flat = by_arm[name], by_arm[f"flat {name}"]
        gains.append((flat["first"] + flat["second"] - alone["first"] - alone["second"]) / 2)
        flatter.append(100 * (1 - flat["rise"] / alone["rise"]))
    return Evidence(rows, {"gain": float(np.mean(gains)), "flatter": float(np.mean(flatter))})


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy of both tasks on the canvases that choose."""

    def score(arm: str, rate: float, seed: int) -> float:
        train, choose, _ = canvases(seed, True)
        return float(np.mean(accuracies(fit(arm, rate, train, seed, EPOCHS), choose)))

    return {arm: best_setting(GRID, lambda rate, seed, arm=arm: score(arm, rate, seed), PILOTS) for arm in RATES}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """MNIST digits ``[10000, 14, 14]`` and their labels."""
    pictures, labels = mnist_10k()
    return torch.as_tensor(halved(pictures).reshape(-1, 14, 14)), torch.as_tensor(labels)


@cache
def canvases(seed: int, full: bool) -> tuple[Canvases, Canvases, Canvases]:
    """Canvases ``[N, 1, 18, 18]`` and both labels ``[N, 2]`` to train, choose and test; no digit is in two of them."""
    generator = torch.Generator().manual_seed(seed)
    if full:
        pictures, labels = digits()
        sizes, dtype = (1500, 1000, 2500), torch.float32
    else:
        pictures = torch.rand(60, 14, 14, generator=generator, dtype=torch.float64)
        labels = torch.arange(60) % 10
        sizes, dtype = (20, 5, 5), torch.float64
    order = torch.randperm(len(labels), generator=generator)
    parts, start = [], 0
    for size in sizes:
        pairs = order[start : start + 2 * size].view(2, size)
        start += 2 * size
        canvas = torch.zeros(size, 1, 18, 18, dtype=torch.float64)
        canvas[:, 0, :14, :14] = pictures[pairs[0]]
        canvas[:, 0, 4:, 4:] = torch.maximum(canvas[:, 0, 4:, 4:], pictures[pairs[1]])
        parts.append((((canvas - 0.2) / 0.35).to(dtype), labels[pairs].T.clone()))
    wrong = torch.rand(sizes[0], generator=generator) < NOISE
    shift = torch.randint(1, 10, (sizes[0],), generator=generator)
    parts[0][1][:, 1] = torch.where(wrong, (parts[0][1][:, 1] + shift) % 10, parts[0][1][:, 1])
    return parts[0], parts[1], parts[2]


def lenet() -> nn.ModuleDict:
    """Shared layers and a head for each task."""
    body = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 64), nn.ReLU(),
    )  # fmt: skip
    return nn.ModuleDict({"body": body, "first": nn.Linear(64, 10), "second": nn.Linear(64, 10)})


def fit(arm: str, rate: float, train: Canvases, seed: int, epochs: int) -> nn.ModuleDict:
    """A network trained by an arm."""
    x, y = train
    torch.manual_seed(seed)
    model = lenet().to(x.dtype)
    aggregator = AGGREGATORS[arm.removeprefix("flat ")]()
    radius = RADIUS if arm.startswith("flat") else 0.0
    heads = [model["first"], model["second"]]
    tasks = FlatMTL(model["body"], heads, aggregator, rho=radius)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    batch = min(BATCH, len(x))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // batch))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            if len(rows) < batch:
                continue
            optimizer.zero_grad()
            if radius:
                tasks.backward([lambda task=task, rows=rows: loss_of(model, x[rows], y[rows], task) for task in (0, 1)])
            else:
                features = model["body"](x[rows])
                losses = [cross_entropy(head(features), y[rows, task]) for task, head in enumerate(heads)]
                backward(losses, features=features, aggregator=aggregator)
            optimizer.step()
            schedule.step()
    return model


def loss_of(model: nn.ModuleDict, x: Tensor, y: Tensor, task: int) -> Tensor:
    """Cross-entropy of a task."""
    return cross_entropy(model["second" if task else "first"](model["body"](x)), y[:, task])


@torch.no_grad()
def accuracies(model: nn.ModuleDict, data: Canvases) -> tuple[float, float]:
    """Share of canvases whose first, and whose second digit is right, in percent."""
    x, y = data
    features = model["body"](x)
    first, second = (model[name](features).argmax(1) for name in ("first", "second"))
    return 100 * float((first == y[:, 0]).double().mean()), 100 * float((second == y[:, 1]).double().mean())


def rise(model: nn.ModuleDict, data: Canvases) -> float:
    """How far the training loss of both tasks rises along its gradient within the radius."""
    x, y = data
    parameters = list(model.parameters())

    def loss() -> Tensor:
        return loss_of(model, x, y, 0) + loss_of(model, x, y, 1)

    here = loss()
    gradients = torch.autograd.grad(here, parameters)
    with displaced(parameters, ascent(parameters, gradients, RADIUS)), torch.no_grad():
        return float(loss() - here)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy of both tasks, arm by arm."""
    rows = [
        {"arm": f"{row['arm']}, {task}", "test accuracy, %": row[key]}
        for one in evidence
        for row in one.rows
        for key, task in (("first", "clean"), ("second", "noisy"))
    ]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="test accuracy, %")
    return drawn
