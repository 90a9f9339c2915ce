"""Gravity against Adam and RMSProp at their defaults: accuracy, and how smooth the loss falls.

Set-up of the claim, smaller: 2,000 MNIST digits at 14 x 14 pixels (card: 10,000 Fashion-MNIST), a small CNN, 10 epochs
in batches of 128, the defaults of all three (Gravity 0.1, Adam 0.001, RMSProp 0.01 as torch has it). All
arms of a seed have one initial network and the same batches.

Claims, from the card's "within 1 to 2 points of Adam, smoother curve": test accuracy is above Adam's less 2 points, and
above RMSProp's less 2 points; the curve of the training loss is smoother than Adam's: the mean absolute second
difference of the logarithm of the mean loss of each half epoch is lower (size: a fifth; the card has no number). A
control of ours: the same for accuracy where each has the best of :data:`GRIDS` by accuracy on a seed that is not
reported (:func:`choose_rates`).

Both claims on accuracy at defaults are contradicted here. Checked: the transform is that of the official code (the
card's tests); the control says that it is the default rate, too small for the 150 steps of this run: with its best rate
Gravity is as good as Adam. In a pilot with batches of 64, twice the steps, it had 89.5% at its default rate.

The baseline is fair: that defaults are compared is the claim, and the control tunes all alike; Adam must reach 88%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer

from ....optim.optimizers.gravity import Gravity
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane
from ._networks import accuracy, digits, fit, loss_on

SEEDS, PILOTS, ROWS, EPOCHS, BATCH = 6, (101,), 2000, 10, 128
DEFAULTS = {"Gravity": 0.1, "Adam": 0.001, "RMSProp": 0.01}
GRIDS = {
    "Gravity": (0.1, 0.3, 1.0, 3.0),
    "Adam": (0.001, 0.003, 0.01, 0.03),
    "RMSProp": (0.0003, 0.001, 0.003, 0.01),
}
RATES = {"Gravity": 1.0, "Adam": 0.01, "RMSProp": 0.003}
"""What :func:`choose_rates` gives."""
SANITY = 88.0
CLAIMS = (
    Claim("adam", "at defaults accuracy is above Adam's less 2 points", size=2.0, threshold=-2.0),
    Claim("rmsprop", "at defaults accuracy is above RMSProp's less 2 points", size=2.0, threshold=-2.0),
    Claim("smoother", "at defaults the loss curve is smoother, in percent of Adam's roughness", size=20.0),
    Claim("tuned", "with tuned rates accuracy is above Adam's less 2 points", size=2.0, threshold=-2.0, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Accuracy and roughness of each arm."""
    full = scale == "full"
    rows: list[dict[str, Any]] = []
    for kind, rates in (("default", DEFAULTS), ("tuned", RATES)):
        for arm, rate in rates.items():
            rows.append({"arm": f"{arm}, {kind}", "rate": rate} | trained(arm, rate, seed, full))
    by_arm = {row["arm"]: row for row in rows}
    score = {arm: row["accuracy"] for arm, row in by_arm.items()}
    if full:
        check_sane("accuracy of Adam", score["Adam, default"], SANITY)
    rough = {arm: row["roughness"] for arm, row in by_arm.items()}
    return Evidence(
        rows,
        {
            "adam": score["Gravity, default"] - score["Adam, default"],
            "rmsprop": score["Gravity, default"] - score["RMSProp, default"],
            "smoother": 100 * (1 - rough["Gravity, default"] / rough["Adam, default"]),
            "tuned": score["Gravity, tuned"] - score["Adam, tuned"],
        },
    )


def stepper(arm: str, rate: float) -> Callable[[nn.Module], Optimizer]:
    """What makes the optimizer of an arm."""
    if arm == "Gravity":
        return lambda model: Gravity(model.parameters(), rate)
    cls = {"Adam": torch.optim.Adam, "RMSProp": torch.optim.RMSprop}[arm]
    return lambda model: cls(model.parameters(), rate, foreach=True)


def trained(arm: str, rate: float, seed: int, full: bool) -> dict[str, float]:
    """Accuracy in percent (in a smoke run less the loss), the last training loss, roughness of its curve."""
    data = digits(seed, full, ROWS)
    losses: list[float] = []
    batch = BATCH if full else 10
    model = fit(
        data,
        seed,
        EPOCHS if full else 2,
        stepper(arm, rate),
        batch=batch,
        after=lambda _, loss: losses.append(float(loss)),
    )
    half = max(1, len(data[0]) // batch // 2)
    means = [sum(losses[i : i + half]) / half for i in range(0, len(losses) - half + 1, half)]
    logs = [math.log(value) for value in means]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(logs, logs[1:], logs[2:])]
    right = accuracy(model, data) if full else -loss_on(model, data[2], data[3])
    return {"accuracy": right, "loss": means[-1], "roughness": sum(bends) / len(bends)}


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy on seeds that are not reported."""
    return {
        arm: best_setting(grid, lambda rate, seed, arm=arm: trained(arm, rate, seed, True)["accuracy"], PILOTS)
        for arm, grid in GRIDS.items()
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy of each arm."""
    rows = [{"arm": row["arm"], "test accuracy, %": row["accuracy"]} for one in evidence for row in one.rows]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="test accuracy, %")
    return drawn
