"""The minority's loss at the start of training, and normalised steps on mini-batches.

Scikit-learn's digits 3 against 8, pixels in [0, 1]: 160 threes and 8 eights for training, the others (23 and 166) for
testing. A network of 64, 32 and 1 units, tanh, in float64.

The start: 100 steps with all data, gradient descent at 0.5 and PCNGD at 0.02, the card's rates; the loss of the eights.
Batches: 200 steps of 42 in the proportions of the classes, 40 and 2, or with oversampling 21 and 21, the eights
reshuffled where exhausted; the projection takes the gradients in all data at each step. Rates fall to 0 along a cosine.
Balanced accuracy on the test part, for which the publication gives no number: 2 points are taken as the size.

The baselines are fair: each arm on batches has the rate of six that gives the best mean balanced accuracy on the test
parts of four splits that are not reported; SGD must reach 55% there (always to say "three" gives 50%). Sixty seeds:
runs of twenty and of fifty could have found no less than 3.2 and 2.1 points over SGD; nothing else changed after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ....gradients.per_class.per_class_gradients import PerClassNormalized
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import best_setting, check_sane
from ...tuning import UNREPORTED

SEEDS = 60
MAJORITY, MINORITY = 160, 8
STEPS, GD_RATE, PCNGD_RATE = 100, 0.5, 0.02
BATCH = 42
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
PILOTS = tuple(range(UNREPORTED, UNREPORTED + 4))
BATCH_STEPS = 200
ARMS = ("SGD", "SGD+O", "PCNSGD", "PCNSGD+O", "PCNSGD+R")
SANITY = 55.0
CLAIMS = (
    Claim("GD rises", "with gradient descent the minority's loss is above its start at step 5", size=1.0),
    Claim(
        "GD late",
        "with gradient descent it is below its start only after more than 20 steps",
        size=5.0,
        threshold=20.0,
    ),
    Claim(
        "PCNGD falls",
        "with PCNGD it is never above its start (the largest of steps 1 to 100, minus the start)",
        size=0.002,
        greater=False,
    ),
    Claim(
        "PCNGD at 100",
        "with PCNGD it is at step 100 less than 60% of its start",
        size=0.1,
        threshold=0.6,
        greater=False,
        ours=True,
    ),
    Claim("PCNSGD+O", "oversampled, PCNSGD's balanced accuracy is above that without (points)", size=2.0),
    Claim("PCNSGD+R", "with the projection, PCNSGD's balanced accuracy is above that without (points)", size=2.0),
    Claim("PCNSGD", "PCNSGD's balanced accuracy is above SGD's (points)", size=2.0),
)
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def run(scale: str, seed: int) -> Evidence:
    """The curves of the minority's loss, and the balanced accuracy of each arm on batches."""
    full = scale == "full"
    data = data_of(seed)
    curves = {arm: curve(arm, data, seed, STEPS if full else 10)[:, 1] for arm in ("GD", "PCNGD")}
    rows: list[dict[str, str | float]] = [
        {"arm": arm, "step": step, "minority loss": float(values[step])}
        for arm, values in curves.items()
        for step in range(0, len(values), 5)
    ]
    rates = {arm: rate_of(arm) for arm in ARMS} if full else dict.fromkeys(ARMS, RATES[1])
    steps = BATCH_STEPS if full else 5
    accuracy = {arm: balanced_accuracy(arm, rates[arm], data, seed, steps) for arm in ARMS}
    rows += [{"arm": arm, "rate": rates[arm], "balanced accuracy": accuracy[arm]} for arm in ARMS]
    if full:
        check_sane("balanced accuracy of SGD", accuracy["SGD"], SANITY)
    plain, normalized = curves["GD"], curves["PCNGD"]
    below = np.flatnonzero(plain[1:] < plain[0])
    effects = {
        "GD rises": float(plain[5] - plain[0]),
        "GD late": float(below[0] + 1 if len(below) else len(plain)),
        "PCNGD falls": float(normalized[1:].max() - normalized[0]),
        "PCNGD at 100": float(normalized[-1] / normalized[0]),
        "PCNSGD+O": accuracy["PCNSGD+O"] - accuracy["PCNSGD"],
        "PCNSGD+R": accuracy["PCNSGD+R"] - accuracy["PCNSGD"],
        "PCNSGD": accuracy["PCNSGD"] - accuracy["SGD"],
    }
    return Evidence(rows, effects)


@cache
def rate_of(arm: str) -> float:
    """The rate of an arm on batches, by splits that are not reported."""

    def score(rate: float, seed: int) -> float:
        return balanced_accuracy(arm, rate, data_of(seed), seed, BATCH_STEPS)

    return best_setting(RATES, score, PILOTS)


def data_of(seed: int) -> Data:
    """Digits 3 (class 0) and 8, pixels in [0, 1]: 160 and 8 for training, the others for testing."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng([seed, 7])
    own = [rng.permutation(np.flatnonzero(y == label)) for label in (3, 8)]
    parts = [np.concatenate(rows) for rows in zip(*((r[:n], r[n:]) for r, n in zip(own, (MAJORITY, MINORITY))))]
    tensors = []
    for rows in parts:
        tensors += [torch.as_tensor(x[rows] / 16.0), torch.as_tensor((y[rows] == 8).astype(np.int64))]
    return tensors[0], tensors[1], tensors[2], tensors[3]


def network(seed: int) -> nn.Module:
    """64 - 32 - 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1)).double()


def losses_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of each sample."""
    return binary_cross_entropy_with_logits(model(x).squeeze(1), y.double(), reduction="none")


def curve(arm: str, data: Data, seed: int, steps: int) -> np.ndarray:
    """Mean loss of each class over full-batch steps, ``[steps + 1, 2]``."""
    x, y, _, _ = data
    model = network(seed)
    normalized = arm == "PCNGD"
    optimizer = torch.optim.SGD(model.parameters(), lr=PCNGD_RATE if normalized else GD_RATE)
    descent = PerClassNormalized(optimizer, 2)
    values = []
    for step in range(steps + 1):
        losses = losses_of(model, x, y)
        values.append([float(losses[y == label].detach().mean()) for label in (0, 1)])
        if step < steps:
            if normalized:
                descent.step(losses, y)
            else:
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
    return np.array(values)


def batches(y: Tensor, sizes: Sequence[int], steps: int, seed: int) -> Iterator[Tensor]:
    """Rows of each class, reshuffled where exhausted."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(y == label).nonzero().squeeze(1) for label in (0, 1)]
    left = [r[:0] for r in rows]
    for _ in range(steps):
        batch = []
        for label, size in enumerate(sizes):
            while len(left[label]) < size:
                order = torch.randperm(len(rows[label]), generator=generator)
                left[label] = torch.cat([left[label], rows[label][order]])
            batch.append(left[label][:size])
            left[label] = left[label][size:]
        yield torch.cat(batch)


def balanced_accuracy(arm: str, rate: float, data: Data, seed: int, steps: int) -> float:
    """In percent, on the test part, after training on batches."""
    x, y, x_test, y_test = data
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    descent = PerClassNormalized(optimizer, 2, "projection" if arm.endswith("R") else None)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sizes = (BATCH // 2, BATCH // 2) if arm.endswith("O") else (40, 2)
    for rows in batches(y, sizes, steps, seed):
        losses = losses_of(model, x[rows], y[rows])
        if arm.startswith("SGD"):
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        else:
            if arm.endswith("R"):
                descent.set_reference(losses_of(model, x, y), y)
            descent.step(losses, y[rows])
        schedule.step()
    with torch.no_grad():
        right = (model(x_test).squeeze(1) > 0) == y_test
    return 100 * float(np.mean([right[y_test == label].double().mean() for label in (0, 1)]))


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The minority's loss over steps with all data."""
    curves = [Evidence([row for row in own.rows if "step" in row], own.effects) for own in evidence]
    drawn: Figure = arms_figure(curves, x="step", y="minority loss")
    return drawn
