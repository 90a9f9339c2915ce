"""Bloop: a main and an auxiliary loss, beside their weighted sum, PCGrad, and the surgery without an average.

(a) The noisy valley: main loss 0.5 (w_1 - 1)^2, auxiliary loss 0.5 |w|^2, 50 variables, the main gradient with noise of
0.1 in each, SGD at 0.05, 1500 steps; the main loss in the mean of the last half. The weighted sum ends with a bias of
lam / (1 + lam); "near the noise floor" is taken as below ten times the main loss without an auxiliary one, and the
comparison is made at lam = 1. The two losses hang together by w_1 alone, so that at equal auxiliary loss all methods
have the same main loss: the card's "at equal auxiliary" is replaced by equal lam.

(b) Real data: 2000 images of MNIST at 14 x 14 pixels in place of Fashion-MNIST, a rectified net with 32 hidden units,
cross-entropy on the images and, as auxiliary loss, on the images turned by a right angle. SGD with momentum, batches of
64, 12 epochs with a rate that falls to 0 along a cosine, lam from 0.01 to 10 in seven steps, all methods and lams of a
seed as one stack from one start on the same batches. The trade-off of a method is the least (1 - t) log main + t log
auxiliary loss over its lams, on all training images, in the mean over t = 0.1 ... 0.9. "At or above mixed" is a
trade-off that is at most 2% higher than the sum's; the title's "better" has no number: 5% are taken.

The baseline is fair: all methods share initial weights, batches and lams, and each has the rate of three with the best
trade-off on two seeds that are not reported; the sum must reach a main loss of 0.3 at its smallest lam.

What was checked of what is not shown. (a) In the valley at lam 1, on a seed that is not reported, a share of 0.001 ends
at 0.9 times the main loss without an auxiliary one, 0.01 at 16, 0.1 at 170, 0.3 at 380: near the minimum the main
gradient is noise, and so is its average. (b) The order on images hangs on rate and length. With 0.03 for all and 36
epochs (one seed) Bloop is 27% better than the sum and the surgery without an average 27% worse. But at 0.1, where the
average lags, the sum is better still: a first run for the record, over 30 epochs with a rate of four for each (seeds 0
to 7; 0.03 for Bloop, 0.1 for the others), had Bloop 15% [-3, 34] worse than the sum and 32% [13, 51] worse than without
an average; it was given up, as its spread would have hidden 5%, for 12 epochs, which were planned at first. With 16
units, 3000 images and 16 epochs (4 other seeds) it is 24% and 33%; in 12 epochs shares of 0.1 and 0.3 are worse than
0.01 (2 other seeds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy

from ....gradients.surgery.bloop import bloop_direction
from ...data import digits, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import best_setting, check_sane
from ...tuning import UNREPORTED

SEEDS = 24
LAMS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
METHODS = ("mixed", "PCGrad", "no average", "Bloop")
SHARES = {"no average": 1.0, "rho 0.1": 0.1, "Bloop": 0.01}
"""Share of the new main gradient in the average, of the methods that have one; a share of 1 is no average."""
GRID = (0.03, 0.1, 0.3)
HIDDEN, BATCH, EPOCHS, TRAIN = 32, 64, 12, 2000
PILOTS = (UNREPORTED, UNREPORTED + 1)
SANITY = -0.3
"""Minus the main loss that the weighted sum must reach."""
CLAIMS = (
    Claim(
        "bias",
        "in the noisy valley at lam 1 Bloop's main loss is below that of the weighted sum (share of it)",
        size=0.5,
    ),
    Claim(
        "floor",
        "and near the noise floor: below ten times the main loss without an auxiliary one",
        size=10.0,
        threshold=10.0,
        greater=False,
    ),
    Claim("average", "and below that of the surgery without an average (share of it)", size=0.5),
    Claim(
        "at or above",
        "on images Bloop's trade-off is at or above that of the weighted sum (at most 2% higher)",
        size=0.05,
        threshold=-0.02,
    ),
    Claim("better", "it is better than that of the weighted sum (share of the loss)", size=0.05),
    Claim("better by average", "it is better than that of the surgery without an average (share)", size=0.05),
)
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def run(scale: str, seed: int) -> Evidence:
    """Main and auxiliary loss of each method and lam, in the valley and on images."""
    full = scale == "full"
    rates = chosen() if full else dict.fromkeys(METHODS, GRID[1])
    outcome = trained(rates, data_of(scale, seed), EPOCHS if full else 1, seed)
    if full:
        check_sane("minus the main loss of the sum", -float(outcome["mixed"][0, 0]), SANITY)
    valley = valley_losses(seed, 1500 if full else 40)
    rows: list[dict[str, float | str]] = []
    for method, losses in outcome.items():
        for lam, (main, auxiliary, accuracy) in zip(LAMS, losses.tolist()):
            row: dict[str, float | str] = {"arm": method, "lam": lam, "rate": rates[method], "main loss": main}
            rows.append(row | {"auxiliary loss": auxiliary, "test accuracy": accuracy})
    for method, losses in valley.items():
        rows += [{"arm": f"{method}, valley", "lam": lam, "main loss": v} for lam, v in zip(LAMS, losses.tolist())]
    at_one = {method: float(losses[LAMS.index(1.0)]) for method, losses in valley.items()}
    scores = {method: trade_off(losses) for method, losses in outcome.items()}
    over_sum = 1 - math.exp(scores["Bloop"] - scores["mixed"])
    effects = {
        "bias": 1 - at_one["Bloop"] / at_one["mixed"],
        "floor": at_one["Bloop"] / at_one["none"],
        "average": 1 - at_one["Bloop"] / at_one["no average"],
        "at or above": over_sum,
        "better": over_sum,
        "better by average": 1 - math.exp(scores["Bloop"] - scores["no average"]),
    }
    return Evidence(rows, effects)


@cache
def chosen() -> dict[str, float]:
    """The rate of each method with the best trade-off on seeds that are not reported."""
    scores: dict[tuple[str, float, int], float] = {}
    for seed in PILOTS:
        data = data_of("full", seed)
        for rate in GRID:
            for method, losses in trained(dict.fromkeys(METHODS, rate), data, EPOCHS, seed).items():
                value = trade_off(losses)
                scores[method, rate, seed] = -value if math.isfinite(value) else -math.inf

    def of(method: str) -> float:
        return best_setting(GRID, lambda rate, seed: scores[method, rate, seed], PILOTS)

    return {method: of(method) for method in METHODS}


def trade_off(losses: Tensor) -> float:
    """The least weighted mean of the logarithms over the lams, in the mean over nine weights."""
    logs = losses[:, :2].log()
    weights = torch.arange(1, 10, dtype=logs.dtype) / 10
    return float(((1 - weights) * logs[:, :1] + weights * logs[:, 1:]).amin(0).mean())


def direction(method: str, main: Tensor, auxiliary: Tensor, average: Tensor) -> Tensor:
    """The directions ``[K, n]`` of K members, from auxiliary gradients that are weighted."""
    if method == "mixed":
        return main + auxiliary
    if method == "PCGrad":
        dot = (main * auxiliary).sum(1, keepdim=True).clamp_max(0.0)
        squares = [g.square().sum(1, keepdim=True).clamp_min(1e-30) for g in (main, auxiliary)]
        return main * (1 - dot / squares[0]) + auxiliary * (1 - dot / squares[1])
    moves: Tensor = vmap(lambda m, a, e: bloop_direction(m, a, e, 1.0))(main, auxiliary, average)
    return moves


def averaged(method: str, average: Tensor, main: Tensor) -> Tensor:
    """The average after a step."""
    return average.lerp(main, SHARES[method]) if method in SHARES else average


def valley_losses(seed: int, steps: int, width: int = 50) -> dict[str, Tensor]:
    """The main loss of each method and lam in the mean of the last half of the steps, and that of none."""
    lams = torch.tensor(LAMS, dtype=torch.float64).unsqueeze(1)
    losses = {}
    for method in (*METHODS, "rho 0.1", "none"):
        generator = torch.Generator().manual_seed(seed)
        w = torch.zeros(len(LAMS), width, dtype=torch.float64)
        average, total = w, torch.zeros(len(LAMS), dtype=torch.float64)
        for step in range(steps):
            main = 0.1 * torch.randn(width, generator=generator, dtype=torch.float64).repeat(len(LAMS), 1)
            main[:, 0] += w[:, 0] - 1
            average = main if step == 0 or method == "no average" else average
            move = main if method == "none" else direction(method, main, lams * w, average)
            average = averaged(method, average, main)
            w = w - 0.05 * move
            if step >= steps // 2:
                total += 0.5 * (w[:, 0] - 1).square() / (steps - steps // 2)
        losses[method] = total
    return losses


def data_of(scale: str, seed: int) -> Data:
    """Images and labels for training and testing; pixels standardised all alike; in float64 at smoke scale."""
    if scale == "full":
        images, labels = mnist_10k()
        order = np.random.default_rng(seed).permutation(len(labels))[: 2 * TRAIN]
        pixels, y, train = torch.as_tensor(halved(images)[order]), torch.as_tensor(labels[order]), TRAIN
    else:
        pixels, y, _, _ = (torch.as_tensor(values) for values in digits(seed, train=150))
        train = 100
    x = (pixels - pixels[:train].mean()) / pixels[:train].std()
    x = x.float() if scale == "full" else x
    return x[:train], y[:train], x[train:], y[train:]


def turned(x: Tensor) -> Tensor:
    """Flat square images, by a right angle."""
    side = math.isqrt(x.shape[1])
    images: Tensor = x.unflatten(1, (side, side)).rot90(1, (1, 2)).flatten(1)
    return images


def outputs_of(flat: Tensor, x: Tensor) -> Tensor:
    """Logits ``[K, B, 10]`` of K nets with parameters ``[K, n]``."""
    inputs = x.shape[1]
    shapes = ((inputs, HIDDEN), (1, HIDDEN), (HIDDEN, 10), (1, 10))
    pieces = flat.split([a * b for a, b in shapes], 1)
    w, b, v, c = (piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes))
    outputs: Tensor = torch.relu(x @ w + b) @ v + c
    return outputs


def loss_of(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each net ``[K]``."""
    outputs = outputs_of(flat, x)
    by_sample = cross_entropy(outputs.flatten(0, 1), y.repeat(len(flat)), reduction="none")
    losses: Tensor = by_sample.unflatten(0, (len(flat), len(x))).mean(1)
    return losses


def trained(rates: Mapping[str, float], data: Data, epochs: int, seed: int) -> dict[str, Tensor]:
    """Main loss, auxiliary loss (training images) and test accuracy in percent for each lam, ``[7, 3]`` a method."""
    x, y, x_test, y_test = data
    generator = torch.Generator().manual_seed(seed)
    inputs, count = x.shape[1], len(LAMS)
    layers = [torch.randn(inputs * HIDDEN, generator=generator) * (2 / inputs) ** 0.5, torch.zeros(HIDDEN)]
    layers += [torch.randn(HIDDEN * 10, generator=generator) * (1 / HIDDEN) ** 0.5, torch.zeros(10)]
    flat = torch.cat(layers).to(x.dtype).repeat(count * len(rates), 1).requires_grad_()
    lams = torch.tensor(LAMS, dtype=x.dtype).repeat(len(rates)).unsqueeze(1)
    rate = torch.tensor(list(rates.values()), dtype=x.dtype).repeat_interleave(count).unsqueeze(1)
    momentum = torch.zeros_like(flat)
    averages: list[Tensor] = []
    steps, step = epochs * math.ceil(len(x) / BATCH), 0
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            main, auxiliary = (
                torch.autograd.grad(loss_of(flat, images, y[batch]).sum(), flat)[0]
                for images in (x[batch], turned(x[batch]))
            )
            moves = []
            mains, others = main.split(count), (lams * auxiliary).split(count)
            averages = averages or list(mains)
            for number, method in enumerate(rates):
                spared = mains[number] if method == "no average" else averages[number]
                moves.append(direction(method, mains[number], others[number], spared))
                averages[number] = averaged(method, averages[number], mains[number])
            with torch.no_grad():
                momentum = 0.9 * momentum + torch.cat(moves)
                flat -= 0.5 * (1 + math.cos(math.pi * step / steps)) * rate * momentum
            step += 1
    with torch.no_grad():
        right = (outputs_of(flat, x_test).argmax(2) == y_test).double().mean(1)
        values = torch.stack([loss_of(flat, x, y), loss_of(flat, turned(x), y), 100 * right], 1).double()
    return dict(zip(rates, values.split(count)))


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Main loss on images by lam."""
    images = [Evidence([row for row in one.rows if "rate" in row], {}) for one in evidence]
    drawn: Figure = arms_figure(images, x="lam", y="main loss")
    drawn.axes[0].set_xscale("log")
    drawn.axes[0].set_yscale("log")
    return drawn
