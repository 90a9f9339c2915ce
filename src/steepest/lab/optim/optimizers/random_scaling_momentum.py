"""Random scaling of momentum: the same accuracy, and the loss falls by the inner products that the identity names.

Set-up of the claim, smaller: 2,000 MNIST digits at 14 x 14 pixels (card: 10,000 Fashion-MNIST), a small rectified CNN,
5 epochs in batches of 50; SGD with momentum 0.9 against the same with updates scaled by Exp(1). The identity is taken
along runs of :data:`STEPS` steps from the first on 200 digits, in batches of 50: after each step the loss of all 200
and its gradient give F(x_t) - F(x_{t-1}) and <grad F(x_t), D_t>, D_t being the update without its random factor; both
are summed, over several runs where factors are random.

Claims, from the card's "accuracy within 1 point" and "with exponential scaling they agree (ratio 0.9 to 1.1), with
constant scaling they do not": accuracy is above that of SGD with momentum less a point; the sum of inner products over
the change of the loss is above 0.9 and below 1.1 with exponential scaling; with constant scaling it is below 0.9 (the
tangent at the end of a step predicts less of a fall than there was). The ratio has the change below the line, because a
pilot's inner products of constant scaling crossed 0.

The baseline is fair: each arm takes the best of the rates :data:`GRID` by accuracy over a seed that is not reported
(:func:`choose_rates`); the identity's runs have one rate for both (:data:`RATE`), at which both train: at small
rates every scaling agrees. SGD with momentum must reach 88%.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from ....optim.optimizers.random_scaling_momentum import RandomScalingSGDM
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane
from ._networks import accuracy, digits, fit, loss_on, network

SEEDS, PILOTS, ROWS, EPOCHS, BATCH = 8, (101,), 2000, 5, 50
STEPS, PROBED, RATE = 100, 200, 0.01
GRID = (0.01, 0.03, 0.1, 0.3)
MOMENTUM, SANITY = 0.9, 88.0
RUNS = {"SGD with momentum": 2, "random scaling": 6}
"""Runs of a seed over which both sides of the identity are summed: random factors need more."""
SCALINGS = {"SGD with momentum": "constant", "random scaling": "exponential"}
RATES = {"SGD with momentum": 0.03, "random scaling": 0.03}
"""What :func:`choose_rates` gives."""
CLAIMS = (
    Claim("accuracy", "accuracy is above that of momentum less a point", size=1.0, threshold=-1.0),
    Claim("above 0.9", "with Exp(1) the inner products over the change of the loss are above 0.9", 0.1, threshold=0.9),
    Claim(
        "below 1.1",
        "with Exp(1) the inner products over the change of the loss are below 1.1",
        0.1,
        threshold=1.1,
        greater=False,
    ),
    Claim("constant", "with constant scaling the ratio is below 0.9", size=0.1, threshold=0.9, greater=False),
)


def run(scale: str, seed: int) -> Evidence:
    """Accuracy of both, and both sides of the identity."""
    full = scale == "full"
    data = digits(seed, full, ROWS)
    rows: list[dict[str, Any]] = []
    ratio, score = {}, {}
    for arm in SCALINGS:
        model = fit(data, seed, EPOCHS if full else 1, stepper(arm, RATES[arm], seed), batch=BATCH if full else 10)
        score[arm] = accuracy(model, data) if full else -loss_on(model, data[2], data[3])
        both = [sides(arm, 1000 * (seed + 1) + run, seed, full) for run in range(RUNS[arm] if full else 1)]
        change, products = (sum(side) for side in zip(*both))
        ratio[arm] = products / change
        rows.append({"arm": arm, "rate": RATES[arm], "accuracy": score[arm], "change": change, "products": products})
    if full:
        check_sane("accuracy of momentum", score["SGD with momentum"], SANITY)
    return Evidence(
        rows,
        {
            "accuracy": score["random scaling"] - score["SGD with momentum"],
            "above 0.9": ratio["random scaling"],
            "below 1.1": ratio["random scaling"],
            "constant": ratio["SGD with momentum"],
        },
    )


def stepper(arm: str, rate: float, seed: int) -> Callable[[nn.Module], Optimizer]:
    """What makes the optimizer of an arm."""
    return lambda model: RandomScalingSGDM(
        model.parameters(),
        rate,
        MOMENTUM,
        scaling=SCALINGS[arm],
        generator=torch.Generator().manual_seed(seed),
    )


def sides(arm: str, seed: int, split: int, full: bool) -> tuple[float, float]:
    """Sums of F(x_t) - F(x_{t-1}) and of <grad F(x_t), D_t> along a run, of seeds of its own and of the data's."""
    data = digits(split, full, ROWS)
    x, y = data[0][:PROBED], data[1][:PROBED]
    model = network(data, seed)
    optimizer = stepper(arm, RATE, seed)(model)
    assert isinstance(optimizer, RandomScalingSGDM)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(seed)

    def whole() -> tuple[float, list[Tensor]]:
        loss = nn.functional.cross_entropy(model(x), y)
        return float(loss.detach()), list(torch.autograd.grad(loss, parameters))

    first, _ = whole()
    value, products = first, 0.0
    for _ in range(STEPS if full else 5):
        rows = torch.randint(0, len(x), (BATCH if full else 10,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        value, slopes = whole()
        for p, slope in zip(parameters, slopes):
            products -= RATE * float((optimizer.state[p]["momentum_buffer"] * slope).sum())
    return value - first, products


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy on seeds that are not reported."""

    def score(arm: str, rate: float, seed: int) -> float:
        data = digits(seed, True, ROWS)
        return accuracy(fit(data, seed, EPOCHS, stepper(arm, rate, seed), batch=BATCH), data)

    return {arm: best_setting(GRID, lambda rate, seed, arm=arm: score(arm, rate, seed), PILOTS) for arm in SCALINGS}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Both sides of the identity."""
    rows = [
        {"arm": row["arm"], "inner products over change": row["products"] / row["change"]}
        for one in evidence
        for row in one.rows
    ]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="inner products over change")
    return drawn
