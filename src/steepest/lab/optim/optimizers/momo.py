"""MoMo against momentum and Adam over four decades of rates: the range of rates that train well is wider.

Set-up of the claim, smaller: 1,500 MNIST digits at 14 x 14 pixels (card: 10,000 Fashion-MNIST), a small CNN, 3 epochs
(card: 5) in batches of 50; SGD with momentum 0.9 (its gradients averaged, as MoMo's are) and Momo with rates from 1e-3
to 1e1, Adam and MomoAdam from 1e-4 to 1, two a decade. All arms of a seed have one initial network and the same
batches.

Claims, from the card's "the range of lr within 2 points of the best is at least 3 times wider": the ratio of the
largest to the smallest rate of the connected range around the best in which test accuracy is within 2 points of the
best is larger for Momo than for SGD, and for MomoAdam than for Adam, in decades (size: log10 of 3). A control of ours:
the best accuracy is not lower by a point.

The baseline is fair: both have the same rates, and none is chosen; SGD's best must reach 85%. Its momentum averages
gradients (dampening 0.9), so that one rate means one length of step in both. A range that reaches the end of the grid
is counted up to that end, for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer

from ....optim.optimizers.momo import Momo, MomoAdam
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane
from ._networks import accuracy, digits, fit, loss_on

SEEDS, ROWS, EPOCHS, BATCH = 5, 1500, 3, 50
PER_DECADE, NEAR, SANITY = 2, 2.0, 85.0
RANGES = {"SGD": (-3, 1), "Momo": (-3, 1), "Adam": (-4, 0), "MomoAdam": (-4, 0)}
CLAIMS = (
    Claim("wider", "the range of good rates is wider than that of SGD with momentum, in decades", size=math.log10(3)),
    Claim("wider adam", "the range of good rates of MomoAdam is wider than Adam's, in decades", size=math.log10(3)),
    Claim("best", "the best accuracy is above SGD's less a point", size=1.0, threshold=-1.0, ours=True),
    Claim(
        "best adam", "the best accuracy of MomoAdam is above Adam's less a point", size=1.0, threshold=-1.0, ours=True
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """Accuracy of each arm at each rate."""
    full = scale == "full"
    data = digits(seed, full, ROWS)
    rows: list[dict[str, Any]] = []
    width, best = {}, {}
    for arm, (low, high) in RANGES.items():
        steps = PER_DECADE * (high - low)
        rates = [10 ** (low + i / PER_DECADE) for i in range(steps + 1)]
        if not full:
            rates = rates[1:4]
        scores = []
        for rate in rates:
            model = fit(data, seed, EPOCHS if full else 1, stepper(arm, rate), batch=BATCH if full else 10)
            scores.append(accuracy(model, data) if full else -loss_on(model, data[2], data[3]))
            rows.append({"arm": arm, "rate": rate, "accuracy": scores[-1]})
        width[arm], best[arm] = good_range(scores) / PER_DECADE, max(scores)
    if full:
        check_sane("accuracy of SGD", best["SGD"], SANITY)
    return Evidence(
        rows,
        {
            "wider": width["Momo"] - width["SGD"],
            "wider adam": width["MomoAdam"] - width["Adam"],
            "best": best["Momo"] - best["SGD"],
            "best adam": best["MomoAdam"] - best["Adam"],
        },
    )


def good_range(scores: Sequence[float]) -> int:
    """Steps from the first to the last of the neighbours of the best that are near it.

    >>> good_range([10.0, 88.5, 90.0, 89.0, 80.0, 89.5])
    2
    """
    values = [value if math.isfinite(value) else -math.inf for value in scores]
    top = max(range(len(values)), key=values.__getitem__)
    low = high = top
    while low > 0 and values[low - 1] >= values[top] - NEAR:
        low -= 1
    while high < len(values) - 1 and values[high + 1] >= values[top] - NEAR:
        high += 1
    return high - low


def stepper(arm: str, rate: float) -> Callable[[nn.Module], Optimizer]:
    """What makes the optimizer of an arm."""
    if arm == "SGD":
        return lambda model: torch.optim.SGD(model.parameters(), rate, momentum=0.9, dampening=0.9, foreach=True)
    if arm == "Momo":
        return lambda model: Momo(model.parameters(), rate)
    if arm == "Adam":
        return lambda model: torch.optim.Adam(model.parameters(), rate, foreach=True)
    return lambda model: MomoAdam(model.parameters(), rate)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy by rate."""
    rows = [
        {"arm": f"{row['arm']} {row['rate']:.2g}", "test accuracy, %": row["accuracy"]}
        for one in evidence
        for row in one.rows
    ]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="test accuracy, %")
    return drawn
