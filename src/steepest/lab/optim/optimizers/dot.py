"""DOT against SGD in distillation: both losses at the end, and accuracy.

Set-up of the claim, smaller: MNIST digits at 14 x 14 pixels, 2,000 of them train (card: 10,000 Fashion-MNIST); the
teacher is a small CNN after 8 epochs of Adam, the student an MLP of 32 units, 20 epochs in batches of 50 (card: 30),
the rate falling to 0 along a cosine; L = 0.1 cross-entropy + 0.9 T^2 KL with T = 4. SGD with momentum 0.825, 0.9 and
0.975 against DOT with 0.9 and delta 0.075; all arms of a seed have one teacher, one initial student and the same
batches.

Claims, from the card's "lower kd loss for DOT than SGD at 0.9, task loss not higher, accuracy +0.2 to +1": over the
training rows at the end the distillation loss is lower than that of SGD at 0.9, in percent (size: 5; the card has no
number); the cross-entropy is not above it by 5 percent; test accuracy is higher, in points (size: 0.2, the lower end).
Controls of ours, after the card's caution that the longer memory of the teacher's gradient is a larger rate, for which
SGD should be tuned anew: the same for the distillation loss and for accuracy where DOT takes over SGD's rate, as in the
publication, here :data:`EQUAL`, at which all train.

A first run, over 8 seeds, had a constant rate, and DOT was below SGD at 0.9 in all three: the noise of its longer
memory was never annealed. This one has a falling rate, as the publication has, and a finer grid; the claims are the
same, but for the controls, of which the first run had the distillation loss against SGD at 0.975.

What was checked of the claims that are contradicted: the step is that of the published code; and pilots of twice the
epochs on three seeds, whose best rates by accuracy are 0.01 for DOT and 0.04 for SGD at 0.9. With these DOT's
distillation loss is 11% above SGD's, its cross-entropy 16%, and accuracy is the same (91.01 and 91.02%). The wider gap
of this record comes with half the epochs and the rate 0.005, which a single pilot chose for DOT; but against a tuned
rate its losses are not lower there either. At one rate they are, as in the publication.

The baseline is fair: each arm takes the best of the rates :data:`GRID` by accuracy over a seed that is not reported
(:func:`choose_rates`); the teacher must reach 90%, the student of SGD at 0.9 85%.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....optim.optimizers.dot import DOT
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane
from ._networks import Digits, accuracy, digits, fit, loss_on

SEEDS, PILOTS, ROWS, EPOCHS, BATCH, WIDTH = 8, (101,), 2000, 20, 50, 32
TEMPERATURE, TASK, TEACHER = 4.0, 0.1, 0.9
ARMS = {"SGD 0.825": (0.825, 0.0), "SGD 0.9": (0.9, 0.0), "SGD 0.975": (0.975, 0.0), "DOT": (0.9, 0.075)}
"""Momentum, delta; delta 0 is SGD on the sum."""
GRID = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
RATES = {"SGD 0.825": 0.08, "SGD 0.9": 0.04, "SGD 0.975": 0.01, "DOT": 0.005}
"""What :func:`choose_rates` gives."""
EQUAL = 0.01
SANITY = {"teacher": 90.0, "SGD 0.9": 85.0}
CLAIMS = (
    Claim("kd", "the distillation loss is lower than that of SGD at 0.9, in percent", size=5.0),
    Claim("task", "the cross-entropy is not above that of SGD at 0.9 by 5 percent", size=5.0, threshold=-5.0),
    Claim("accuracy", "test accuracy is higher than that of SGD at 0.9, in points", size=0.2),
    Claim("kd equal", "at one rate the distillation loss is lower than that of SGD, in percent", size=5.0, ours=True),
    Claim("accuracy equal", "at one rate accuracy is higher than that of SGD, in points", size=0.2, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Both losses and accuracy of each arm."""
    full = scale == "full"
    data = digits(seed, full, ROWS)
    master = teacher(seed, full)
    rows: list[dict[str, Any]] = []
    equal = {f"{arm}, equal rate": EQUAL for arm in ("SGD 0.9", "DOT")}
    for arm, rate in {**RATES, **equal}.items():
        student = taught(arm.split(",")[0], rate, seed, full)
        with torch.no_grad():
            task, kd = losses(student(data[0]), master(data[0]), data[1])
        right = accuracy(student, data) if full else -loss_on(student, data[2], data[3])
        row = {"arm": arm, "rate": rate, "accuracy": right, "task": float(task), "kd": float(kd)}
        rows.append(row)
    by_arm = {row["arm"]: row for row in rows}
    if full:
        check_sane("accuracy of the teacher", accuracy(master, data), SANITY["teacher"])
        check_sane("accuracy of SGD", by_arm["SGD 0.9"]["accuracy"], SANITY["SGD 0.9"])
    dot, sgd = by_arm["DOT"], by_arm["SGD 0.9"]
    return Evidence(
        rows,
        {
            "kd": 100 * (1 - dot["kd"] / sgd["kd"]),
            "task": 100 * (1 - dot["task"] / sgd["task"]),
            "accuracy": dot["accuracy"] - sgd["accuracy"],
            "kd equal": 100 * (1 - by_arm["DOT, equal rate"]["kd"] / by_arm["SGD 0.9, equal rate"]["kd"]),
            "accuracy equal": by_arm["DOT, equal rate"]["accuracy"] - by_arm["SGD 0.9, equal rate"]["accuracy"],
        },
    )


@cache
def teacher(seed: int, full: bool) -> nn.Module:
    """A small CNN, trained."""

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), 0.003, foreach=True)

    return fit(digits(seed, full, ROWS), seed, 8 if full else 1, adam, batch=BATCH if full else 10)


def losses(outputs: Tensor, master: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both losses, each with its weight."""
    task = TASK * nn.functional.cross_entropy(outputs, target)
    own, wanted = ((z / TEMPERATURE).log_softmax(1) for z in (outputs, master))
    kd = nn.functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return task, TEACHER * TEMPERATURE**2 * kd


def taught(arm: str, rate: float, seed: int, full: bool) -> nn.Module:
    """A student after its epochs."""
    data: Digits = digits(seed, full, ROWS)
    x, y = data[:2]
    with torch.no_grad():
        wanted = teacher(seed, full)(x)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)).to(x.dtype)
    momentum, delta = ARMS[arm]
    optimizer = DOT(model.parameters(), rate, momentum, delta)
    epochs, size = (EPOCHS, BATCH) if full else (1, 10)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // size))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(size):
            task, kd = losses(model(x[rows]), wanted[rows], y[rows])
            if delta:
                optimizer.step(task, kd)
            else:  # one pass: what DOT would do in two
                optimizer.zero_grad()
                (task + kd).backward()
                optimizer.step()
            schedule.step()
    return model


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy on seeds that are not reported."""

    def score(arm: str, rate: float, seed: int) -> float:
        return accuracy(taught(arm, rate, seed, True), digits(seed, True, ROWS))

    return {arm: best_setting(GRID, lambda rate, seed, arm=arm: score(arm, rate, seed), PILOTS) for arm in ARMS}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The distillation loss of each arm."""
    rows = [{"arm": row["arm"], "distillation loss": row["kd"]} for one in evidence for row in one.rows]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="distillation loss")
    return drawn
