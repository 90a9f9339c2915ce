"""The shipped learned optimizer against Adam at its best rate: small networks for digits, and for other pictures.

Set-up of the claim, smaller: the shipped meta-parameters come from 1,200 steps of persistent evolution strategies
(card: 2,000; pieces of 50 of 200 training steps, 8 pairs, sigma 0.01, Adam from 3e-3 to 3e-4, seed 0) on networks with
one hidden layer of 8, 16, 32 or 64 units (card: random widths) for scikit-learn's digits, in batches of 32, as
:func:`meta_train` does. Here the widths are 12, 24 and 48, with initial weights and batches that
meta-training did not see. Off the family are CIFAR-10's pictures in grey at 8 x 8 pixels (card: Fashion-MNIST at that
size). The number is the cross-entropy on all training rows after 200 steps, in the mean over 4 trainings; ratios are
those of its geometric mean over the widths.

Claims, from the card's "training loss at 200 steps against Adam with the best of 7 rates: equal or better in-family,
worse off-family": on digits the loss is lower than Adam's, on the others it is higher. Expectations of ours: 60
meta-steps at width 8 from random weights lower the mean logarithm of the training loss by more than 0.05, and after
1,000 steps, five times as many as were learned, the loss on digits is higher than Adam's, as the card warns.

What was checked of the first, where a pilot seed had 0.20 to Adam's 0.11 with 12 units and 0.23 to 0.07 with 48: steps
and features are those of a naive loop over the official code's formulas, and the estimator has the closed form of a
small computation. Meta-training is short: the mean logarithm of the training loss was -1.53 after 540 meta-steps, -1.57
after 900 and -1.58 at the end, that of Adam on pilot seeds -1.69 and -2.31; longer meta-training was not tried.

The baseline is fair: Adam takes the best of seven rates for each data set and width by the same number on seeds that
are not reported (:func:`choose_rates`), from the same initial weights in the same batches; on digits it must come below
0.3, which every seed checks. The learned optimizer has no setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from ....optim.learned.learned_optimizers import MetaTrainer, MLPTask, SmallFCLOpt, Unroll
from ...data import cifar10_subset
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

STEPS, LONG, TRAININGS, BATCH, SEEDS, PILOTS, SANITY = 200, 1000, 4, 32, 5, (101, 102), -0.3
GRID = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1)
RATES = {
    ("digits", 12, STEPS): 2e-2, ("digits", 24, STEPS): 2e-2, ("digits", 48, STEPS): 2e-2,
    ("CIFAR-10", 12, STEPS): 1e-2, ("CIFAR-10", 24, STEPS): 1e-2, ("CIFAR-10", 48, STEPS): 1e-2,
    ("digits", 24, LONG): 1e-2,
}  # fmt: skip
"""What :func:`choose_rates` gives, by data set, width and steps."""
CLAIMS = (
    Claim("in family", "on digits the loss is lower than Adam's (logarithm of the ratio)", size=0.1, greater=False),
    Claim("off family", "on CIFAR-10 the loss is higher than Adam's (logarithm of the ratio)", size=0.1),
    Claim(
        "meta-training", "60 meta-steps from random weights lower the mean log loss by over 0.05",
        size=0.05, threshold=0.05, ours=True,
    ),
    Claim("far beyond", "after 1,000 steps on digits the loss is higher than Adam's (logarithm)", size=0.1, ours=True),
)  # fmt: skip


def run(scale: str, seed: int) -> Evidence:
    """The training loss of both arms for each data set and width, and that before and after a short meta-training."""
    full = scale == "full"
    settings = [*RATES] if full else [("digits", 12, 4), ("CIFAR-10", 12, 4)]
    rows: list[dict[str, Any]] = []
    for name, width, steps in settings:
        task = MLPTask(*pictures(name, full), width, BATCH if full else 8)
        of_setting = f"{name}, {width} units, {steps} steps"
        losses = {
            "learned": learned(task, seed, steps, full),
            "Adam": adam(task, seed, steps, RATES.get((name, width, steps), 1e-2), full),
        }
        rows += [
            {"arm": f"{arm}, {of_setting}", "log loss": math.log(loss), "mean log loss": mean}
            for arm, (loss, mean) in losses.items()
        ]
        if full and name == "digits":
            check_sane(f"loss of Adam, negative, {of_setting}", -losses["Adam"][0], SANITY)
    begun, trained = short_meta_training(seed, full)
    rows += [
        {"arm": "random meta-parameters", "mean log loss": begun},
        {"arm": "after 60 meta-steps", "mean log loss": trained},
    ]
    gaps = [one["log loss"] - two["log loss"] for one, two in zip(rows[:-2:2], rows[1:-2:2])]
    by_name = {
        name: [gap for gap, (own, _, steps) in zip(gaps, settings) if own == name and steps != LONG]
        for name in ("digits", "CIFAR-10")
    }
    effects = {
        "in family": sum(by_name["digits"]) / len(by_name["digits"]),
        "off family": sum(by_name["CIFAR-10"]) / len(by_name["CIFAR-10"]),
        "meta-training": begun - trained,
        "far beyond": gaps[-1],
    }
    return Evidence(rows, effects)


@cache
def pictures(name: str, full: bool) -> tuple[Tensor, Tensor]:
    """Pictures of 64 grey pixels, standardised over all of them, and labels; without ``full`` a few in float64."""
    if name == "digits":
        loaded = load_digits()
        x, y = torch.as_tensor(loaded.data), torch.as_tensor(loaded.target)
    elif full:
        colours, labels = cifar10_subset()[:2]
        grey = torch.as_tensor(colours).double().mean(1).reshape(-1, 8, 4, 8, 4).mean((2, 4))
        x, y = grey.reshape(len(grey), 64), torch.as_tensor(labels)
    else:
        x, y = (
            torch.randn(200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
            torch.arange(200) % 10,
        )
    x = (x - x.mean()) / x.std()
    return (x.float(), y) if full else (x[:100].double(), y[:100])


def learned(task: MLPTask, seed: int, steps: int, full: bool) -> tuple[float, float]:
    """The shipped optimizer: its loss at the end, and the mean logarithm of those of its batches."""
    unroll = Unroll(task, TRAININGS if full else 2, 1, torch.Generator().manual_seed(seed))
    losses = unroll.train(shipped().expand(unroll.number, -1), steps)
    return loss_on_all(task, unroll.parameters), float(logarithm(losses))


def shipped() -> Tensor:
    """The meta-parameters of the package."""
    return SmallFCLOpt([torch.zeros(1)]).theta


def adam(task: MLPTask, seed: int, steps: int, rate: float, full: bool) -> tuple[float, float]:
    """The same of Adam from the same initial weights in the same batches; its steps are those of each entry."""
    number, generator = TRAININGS if full else 2, torch.Generator().manual_seed(seed)
    parameters = [p.requires_grad_() for p in task.begin(number, generator)]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    logarithms = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses = task.loss(parameters, task.batch(number, generator))
        losses.sum().backward()
        optimizer.step()
        logarithms.append(float(logarithm(losses.detach())))
    return loss_on_all(task, parameters), sum(logarithms) / steps


def logarithm(losses: Tensor) -> Tensor:
    """The mean logarithm, of at least a millionth."""
    return losses.clamp(min=1e-6).log().mean()


@torch.no_grad()
def loss_on_all(task: MLPTask, parameters: Sequence[Tensor]) -> float:
    """Cross-entropy on all rows, mean over trainings."""
    every = torch.arange(len(task.x)).expand(len(parameters[0]), -1)
    return float(task.loss([p.detach() for p in parameters], every).mean())


def short_meta_training(seed: int, full: bool) -> tuple[float, float]:
    """Mean logarithm of the training loss over 200 steps with random meta-parameters, and after 60 meta-steps."""
    task = MLPTask(*pictures("digits", full), 8, 16 if full else 4)
    generator = torch.Generator().manual_seed(seed)
    piece, total = (50, STEPS) if full else (2, 4)
    trainer = MetaTrainer([task], truncation=piece, total=total, pairs=8 if full else 2, lr=1e-2, generator=generator)
    begun, trained = trainer.theta.clone(), trainer.fit(60 if full else 3)
    losses = []
    for theta in (begun, trained):
        unroll = Unroll(task, TRAININGS, 1, torch.Generator().manual_seed(seed))
        values = unroll.train(theta.expand(TRAININGS, -1), total)
        losses.append(float(logarithm(values)))
    return losses[0], losses[1]


def meta_train(steps: int = 1200) -> Tensor:
    """The meta-parameters of the package again: ten minutes of one core."""
    tasks = [MLPTask(*pictures("digits", True), width, BATCH) for width in (8, 16, 32, 8, 16, 64)]
    generator = torch.Generator().manual_seed(0)
    return MetaTrainer(tasks, truncation=50, total=STEPS, pairs=8, lr=3e-3, generator=generator).fit(steps)


def choose_rates() -> dict[tuple[str, int, int], float]:
    """The rate of Adam with the lowest loss for each setting, over seeds that are not reported."""

    def score(setting: tuple[str, int, int], rate: float, seed: int) -> float:
        name, width, steps = setting
        return -adam(MLPTask(*pictures(name, True), width, BATCH), seed, steps, rate, True)[0]

    return {
        setting: best_setting(GRID, lambda rate, seed, s=setting: score(s, rate, seed), PILOTS) for setting in RATES
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The logarithm of the last loss of each arm."""
    rows = [row for one in evidence for row in one.rows if "log loss" in row]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="log loss")
    return drawn
