"""Block coordinate descent against SGD from the same small weights: multi-layer perceptrons on MNIST digits.

Set-up of the claim, smaller: 2,000 MNIST digits at 14 x 14 pixels (card: 5,000 of Fashion-MNIST), standardised, hidden
layers of 200 units, three or eight of them, weights of deviation 0.01; 30 sweeps of block coordinate descent with
gamma = rho = 1 and alpha = 5, or 20 epochs of SGD with momentum 0.9 and cross-entropy in batches of 50 from the same
weights (8 with eight layers, where nothing moves). Accuracy is that on 3,000 digits that did not train.

Claims, from the card's "BCD monotone and near 80 to 85% test; deep SGD from 0.01-scale weights stays near chance": with
three layers the objective never rises (share of itself, up to rounding) and accuracy is above 80%; with eight layers
SGD stays under 20% and block coordinate descent is above 80%. An expectation of ours, from a pilot: with three layers
SGD, at its best rate, is ahead.

What was checked of the eight layers, where 30 sweeps leave the forward pass at chance although the objective falls to
less than a hundredth: signals of weights this small shrink tenfold a layer, so that the penalties are met long before
the layers agree. The authors' log of ten layers of 600 units (all 60,000 digits, pixels in [0, 1], alpha = 1) is at
chance for 20 sweeps, at 50% after 30, 73% after 50, 81% after 100 and 82% after 300, 88% at best; that of three layers
(alpha = 5) at 95% after 50. So 80% in 30 sweeps isn't theirs. And alpha stands against sums over rows: 1 for 60,000 is
0.03 for our 2,000, and 5 is 0.17. On a seed that is not reported, eight layers of 200 units with alpha = 0.03 are at
50% after 20 sweeps, 64% after 30, 80% after 60 and 83% after 100; with alpha = 1 at chance for 40, and at 56% after
100; with pixels in [0, 1] in place of standardised ones at 49% after 30 and 81% after 100 (alpha = 0.03). The
contradiction is one of alpha = 5 and 30 sweeps at this number of rows, not of the method.

The baseline is fair: SGD takes the best of three rates for each depth by accuracy on a seed that is not reported
(:func:`choose_rates`; with eight layers all three score alike); from PyTorch's own initial weights it must reach 88%
with three layers, which every seed checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....optim.optimizers.block_coordinate_descent import BCDTrainer
from ...data import halved, mnist_10k, split
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

ROWS, WIDTH, SWEEPS, EPOCHS, BATCH, SEEDS, PILOTS = 2000, 200, 30, {3: 20, 8: 8}, 50, 5, (101,)
GRID = (0.01, 0.03, 0.1)
RATES = {3: 0.03, 8: 0.03}
"""What :func:`choose_rates` gives, by the number of hidden layers."""
SANITY = 88.0
CLAIMS = (
    Claim("monotone", "the objective never rises in a sweep (share)", size=1e-4, threshold=1e-5, greater=False),
    Claim(
        "three layers", "with 3 layers block coordinate descent is above 80% on test digits",
        size=5.0, threshold=80.0,
    ),
    Claim("deep SGD", "with 8 layers SGD from small weights stays under 20%", size=5.0, threshold=20.0, greater=False),
    Claim("eight layers", "with 8 layers block coordinate descent is above 80%", size=5.0, threshold=80.0),
    Claim("SGD", "with 3 layers SGD is ahead, in points", size=1.0, ours=True),
)  # fmt: skip
Digits = tuple[Tensor, Tensor, Tensor, Tensor]


def run(scale: str, seed: int) -> Evidence:
    """Accuracy of both methods for both depths."""
    full = scale == "full"
    data = digits(full, seed)
    rows: list[dict[str, Any]] = []
    rise = 0.0
    for depth in (3, 8):
        trainer = begun(data, depth, seed, full)
        values = trainer.fit(data[0], data[1], SWEEPS if full else 3)
        if depth == 3:
            rise = float((values.diff() / values[:-1]).max())
        score = accuracy(trainer.predict, data)
        rows.append({"arm": f"BCD, {depth} layers", "accuracy": score, "objective": float(values[-1])})
        model = begun(data, depth, seed, full).to_module()
        model = descended(model, data, RATES[depth], EPOCHS[depth] if full else 1, seed)
        rows.append({"arm": f"SGD, {depth} layers", "accuracy": accuracy(model, data)})
    if full:
        model = begun(data, 3, seed, full).to_module()
        torch.manual_seed(seed)
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        score = accuracy(descended(model, data, 0.03, 5, seed), data)
        rows.append({"arm": "SGD from usual weights, 3 layers", "accuracy": score})
        check_sane("accuracy of SGD from usual weights", score, SANITY)
    of_arm = {row["arm"]: row["accuracy"] for row in rows}
    effects = {
        "monotone": rise,
        "three layers": of_arm["BCD, 3 layers"],
        "deep SGD": of_arm["SGD, 8 layers"],
        "eight layers": of_arm["BCD, 8 layers"],
        "SGD": of_arm["SGD, 3 layers"] - of_arm["BCD, 3 layers"],
    }
    return Evidence(rows, effects)


@cache
def digits(full: bool, seed: int) -> Digits:
    """Digits that train and test; without ``full`` a few random ones in float64, in classes that are easily told."""
    if not full:
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(60) % 10
        x = 3.0 * nn.functional.one_hot(y, 12) + 0.1 * torch.randn(60, 12, generator=generator)
        x = x.double()
        return x[:40], y[:40], x[40:], y[40:]
    pictures, labels = mnist_10k()
    x, y, x_test, y_test = (torch.as_tensor(v) for v in split(halved(pictures), labels, seed, train=ROWS))
    return x.float(), y, x_test[:3000].float(), y_test[:3000]


def begun(data: Digits, depth: int, seed: int, full: bool) -> BCDTrainer:
    """A trainer with the initial weights of a seed."""
    sizes = [data[0].shape[1], *[WIDTH if full else 6] * depth, 10]
    return BCDTrainer(sizes, dtype=data[0].dtype, generator=torch.Generator().manual_seed(seed))


def descended(model: nn.Sequential, data: Digits, rate: float, epochs: int, seed: int) -> nn.Sequential:
    """The same network after SGD."""
    x, y, _, _ = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(outputs: Callable[[Tensor], Tensor], data: Digits) -> float:
    """Percent of the test digits that are right; of a smoke run the mean probability, which rounding does not move."""
    if data[0].dtype == torch.float64:
        return 100.0 * float(outputs(data[2]).softmax(1).gather(1, data[3][:, None]).mean())
    return 100.0 * float((outputs(data[2]).argmax(1) == data[3]).double().mean())


def choose_rates() -> dict[int, float]:
    """The rate of SGD for each depth with the best accuracy on a seed that is not reported."""

    def score(depth: int, rate: float, seed: int) -> float:
        data = digits(True, seed)
        return accuracy(descended(begun(data, depth, seed, True).to_module(), data, rate, EPOCHS[depth], seed), data)

    return {d: best_setting(GRID, lambda rate, seed, d=d: score(d, rate, seed), PILOTS) for d in RATES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy of each arm."""
    rows = [{"arm": row["arm"], "test accuracy, %": row["accuracy"]} for one in evidence for row in one.rows]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="test accuracy, %")
    return drawn
