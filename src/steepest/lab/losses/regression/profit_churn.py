"""Profit-driven churn: individual values beat targeting by churn probability; break-even thresholds beat SPO+.

Set-up of the claim: x ~ N(0, I_10), churn logit 1.5 v'x - 1, lifetime value V = min(exp(1.05 w'x + 4), 3000) with
random unit v and w, 4,000 customers to train and 4,000 to test, inputs x, log V and 1, linear models, Adam.
Seen by the card over four draws (average profit of a test customer): cross-entropy with threshold 1/2 3.41, with a
threshold tuned for profit 3.86, SPO+ on a linear cost 4.30, SPO+ through the churn probability 4.38, regression of
the cost 4.59, cross-entropy with each customer's break-even probability 5.22, oracle 8.06; with x_1 x_2 added to the
logit 2.89, 3.44, 3.60, 4.30, 4.33, 4.91, 8.21.

The published code minimises a smooth regret of the break-even decision, not SPO+; it is an arm of its own, for which
the card has no number: that of SPO+ is taken. Training is the card's again, 1,500 steps on all customers (600 before).
Costs are divided by the mean value.

The baseline is fair: each loss has the best of three rates for its own profit on the test customers of three seeds that
are not reported, in the mean over both worlds (:func:`choose_rates`): cross-entropy by its tuned threshold, the others
by the decision that they are made for; the card's 0.02 is on the grid. Cross-entropy must rank churn with an AUROC of
0.75, which every seed checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ....losses.regression.profit_churn import (
    ProfitRegretLoss,
    SPOPlusTargetingLoss,
    break_even_probability,
    campaign_profit,
    contact_cost,
)
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, check_sane

SEEDS = 20
SIZE, STEPS = 4000, 1500
GRID = (5e-3, 2e-2, 8e-2)
RATES = {
    "cross-entropy": 8e-2,
    "regression": 8e-2,
    "SPO+ cost": 5e-3,
    "SPO+ probability": 5e-3,
    "smooth regret": 5e-3,
}
"""The rate of each loss: what :func:`choose_rates` gives."""
CHOSEN_BY = {"cross-entropy": "tuned threshold", "regression": "cost regression"}
"""Losses whose rate is chosen by a decision of another name."""
SANITY = 0.75
WORLDS = ("linear", "with x1 x2")
GAMMA, OFFER, CONTACT = 0.3, 10.0, 1.0
CLAIMS = (
    Claim("regret", "smooth regret earns more than cross-entropy with a tuned threshold (0.44 of SPO+)", size=0.44),
    Claim("cost", "SPO+ on a linear cost earns more than that threshold (0.44 a customer)", size=0.44),
    Claim("probability", "SPO+ through the churn probability earns more than that threshold (0.52)", size=0.52),
    Claim("interaction", "and so it does with x1 x2 in the logit (0.86)", size=0.86),
    Claim(
        "break even",
        "cross-entropy with break-even probabilities earns more than both SPO+ (0.84)",
        size=0.84,
        ours=True,
    ),
    Claim("break even 2", "and so it does with x1 x2 in the logit (0.61)", size=0.61, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Average test profit of each way to target, in both worlds."""
    full = scale == "full"
    rows, auroc = measure(RATES, SIZE, STEPS, seed) if full else measure(RATES, 300, 30, seed, dtype=torch.float64)
    if full:
        check_sane("AUROC of cross-entropy", auroc, SANITY)
    profit = {(row["world"], row["arm"].split(": ")[1]): float(row["profit"]) for row in rows}

    def over(world: str, arm: str, other: str) -> float:
        return profit[world, arm] - profit[world, other]

    def lead(world: str) -> float:
        return min(over(world, "break-even probability", arm) for arm in ("SPO+ cost", "SPO+ probability"))

    return Evidence(
        rows,
        {
            "regret": over("linear", "smooth regret", "tuned threshold"),
            "cost": over("linear", "SPO+ cost", "tuned threshold"),
            "probability": over("linear", "SPO+ probability", "tuned threshold"),
            "interaction": over("with x1 x2", "SPO+ probability", "tuned threshold"),
            "break even": lead("linear"),
            "break even 2": lead("with x1 x2"),
        },
    )


def choose_rates() -> dict[str, float]:
    """The rate of each loss with the highest mean profit over worlds and pilot seeds."""
    profit = {name: np.zeros(len(GRID)) for name in RATES}
    for seed in PILOTS:
        for place, rate in enumerate(GRID):
            rows, _ = measure(dict.fromkeys(RATES, rate), SIZE, STEPS, seed)
            for name, earned in profit.items():
                earned[place] += sum(row["profit"] for row in rows if row["arm"].endswith(CHOSEN_BY.get(name, name)))
    return {name: GRID[int(earned.argmax())] for name, earned in profit.items()}


def measure(
    rates: dict[str, float], size: int, steps: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[list[dict[str, Any]], float]:
    """The profit of each way to target in both worlds, and the AUROC of cross-entropy in the linear one.

    At smoke scale all is in float64, so that rounding moves no customer over a threshold.
    """
    x, y, clv = customers(2 * size, seed, dtype)
    train, test = slice(0, size), slice(size, 2 * size)
    a, label, value = x[:, train], y[:, train].flatten(), clv[:, train].flatten()
    cost = contact_cost(label, value)
    unit = float(value.mean())
    regret, surrogate = ProfitRegretLoss(d=OFFER / unit, f=CONTACT / unit), SPOPlusTargetingLoss()
    gain, loss = GAMMA * (value - OFFER) - CONTACT, OFFER + CONTACT

    def through(logits: Tensor) -> Tensor:
        p = torch.sigmoid(logits)
        return ((1 - p) * loss - p * gain) / unit

    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "cross-entropy": lambda o: binary_cross_entropy_with_logits(o, label.to(o.dtype)),
        "regression": lambda o: ((o - cost / unit) ** 2).mean(),
        "SPO+ cost": lambda o: surrogate(o, cost / unit),
        "SPO+ probability": lambda o: surrogate(through(o), cost / unit),
        "smooth regret": lambda o: regret(o, label, value / unit),
    }
    weights = {arm: fitted(a, losses[arm], steps, rate) for arm, rate in rates.items()}
    rows = []
    for world, name in enumerate(WORLDS):
        here = {arm: (x[world, test] @ w[world], x[world, train] @ w[world]) for arm, w in weights.items()}
        rows += profits(name, here, (y[world, train], clv[world, train]), (y[world, test], clv[world, test]))
    return rows, float(roc_auc_score(y[0, test], x[0, test] @ weights["cross-entropy"][0]))


def customers(size: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``[2, size, 12]``, churn ``[2, size]`` and lifetime values ``[2, size]`` of the two worlds."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 10, generator=generator, dtype=dtype)
    v, w = torch.nn.functional.normalize(torch.randn(2, 10, generator=generator, dtype=dtype), dim=1)
    clv = torch.exp(1.05 * x @ w + 4.0).clamp_max(3000.0)
    logit = 1.5 * x @ v - 1.0
    chance = torch.rand(size, generator=generator, dtype=dtype)
    y = torch.stack([(chance < torch.sigmoid(o)).long() for o in (logit, logit + x[:, 0] * x[:, 1])])
    inputs = torch.cat([x, clv.log()[:, None], torch.ones(size, 1, dtype=dtype)], 1)
    return inputs.expand(2, -1, -1), y, clv.expand(2, -1)


def fitted(x: Tensor, loss: Callable[[Tensor], Tensor], steps: int, rate: float) -> Tensor:
    """Weights ``[2, 12]`` of a linear model in each world; ``loss`` takes the outputs of both, flat."""
    weight = torch.zeros(len(x), x.shape[2], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=rate, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss((x @ weight[:, :, None]).flatten()).backward()
        optimizer.step()
    return weight.detach()


def profits(
    world: str,
    outputs: dict[str, tuple[Tensor, Tensor]],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> list[dict[str, Any]]:
    """One row an arm; ``outputs`` are those of the test and of the training customers."""
    p, p_train = (torch.sigmoid(o) for o in outputs["cross-entropy"])
    grid = torch.linspace(0.01, 0.99, 99, dtype=p.dtype)
    earned = torch.stack([campaign_profit(*train, p_train > t).mean() for t in grid])
    contacts = {
        "threshold 1/2": p > 0.5,
        "tuned threshold": p > grid[int(earned.argmax())],
        "SPO+ cost": outputs["SPO+ cost"][0] < 0,
        "SPO+ probability": torch.sigmoid(outputs["SPO+ probability"][0]) > break_even_probability(test[1]),
        "smooth regret": torch.sigmoid(outputs["smooth regret"][0]) > break_even_probability(test[1]),
        "cost regression": outputs["regression"][0] < 0,
        "break-even probability": p > break_even_probability(test[1]),
        "oracle": contact_cost(*test) < 0,
    }
    return [
        {"arm": f"{world}: {arm}", "world": world, "profit": float(campaign_profit(*test, contact).mean())}
        for arm, contact in contacts.items()
    ]


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Average profit of each way to target; the oracle is left out."""
    selected = [Evidence([row for row in of_seed.rows if "oracle" not in row["arm"]], {}) for of_seed in evidence]
    return bars_figure(selected, y="profit")
