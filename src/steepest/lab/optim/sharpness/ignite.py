"""Offline optimisation of hidden functions by a search on surrogates, with and without a bound on their sharpness.

Set-up of the claims: three hidden functions on [-1, 1]^d to be maximised (Branin's and Ackley's, the latter on
[-5, 5]^5, with the sign turned, and a random network of 10 inputs), 500 logged designs, drawn from those of 2,000 that
lie in the lower 60% of values; a surrogate with two layers of 64, trained on squared error of standardised values, 25
epochs in batches of 50 with Adam; gradient ascent of 100 steps from the best 32 designs, clamped to the domain. Values
are those of the hidden function, in percent of the way from the mean logged design (0) to the maximum (100; the
network's by ascent of itself), mean of the functions: of the median and of the best design. The gap is how far the
surrogate's prediction is off the truth at the median design, in the same unit.

Claims, from the card's "expect a higher median for IGNITE on most, and smaller prediction-minus-truth gap" (the
publication: up to 9.6% better): IGNITE's median is above that without (size: 5, half of what it is up to), so is
IGNITE2's; IGNITE's gap is smaller (size: 5). Its absolute value is meant: where the upper values were never logged,
surrogates stay below the truth at most of the designs that a search reaches. And IGNITE's median is above that with
weight decay, which the card names as an arm without a number. A draft counted standard deviations of logged values, in
which Ackley's function, with its narrow summit, outweighs the other two.

The comparison is fair: all arms share designs, initial weights, batches and Adam's rate, which is that of :data:`RATES`
that explains most of the variance of designs that did not train, without a penalty. Each arm has the rate of its search
with the best median on four seeds that are not reported, out of one grid; weight decay also its strength. Nothing
chosen stands at an end. The surrogate without a penalty must explain half of the variance of each function.

Two runs before, of 16 and 32 seeds, are not counted: they chose the strengths of IGNITE (1e-2) and IGNITE2 (1) too, on
two seeds, and the search behind weight decay stood at the upper end of a smaller grid. On four seeds the median falls
with the strength: IGNITE at 1e-5 to 1e-1 has 74.4, 74.0, 73.9, 73.4 and 70.6, IGNITE2 at 1e-4 to 1 has 73.9, 74.2,
73.2, 71.9 and 71.9, so that a choice would do without a penalty. Hence the publication's 1e-3 for both. At it, the
differences to the arm without have standard deviations up to 1.3 over the four seeds, and up to 5.5 over the 32 at
strengths of more effect, for which 12 seeds would be enough.

That no claim is shown was checked: steps are those of a loop in NumPy (tests), and stronger penalties lower medians, as
above. Where the search overshoots (a rate of 1 for all arms, at which the arm without falls to 50.5 on the four seeds,
because of Ackley's function), IGNITE at 1 has 58.4, IGNITE2 at 10 54.5 and weight decay at 1 71.2: a penalty helps
against a search that nobody tuned, decay most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from ....optim.sharpness.ignite import IGNITE, IGNITE2, offline_search
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane
from ...tuning import UNREPORTED

SEEDS, PILOTS = 24, tuple(range(UNREPORTED, UNREPORTED + 4))
STRENGTHS: dict[str, tuple[float, ...]] = {
    "none": (0.0,),
    "weight decay": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "IGNITE": (1e-3,),
    "IGNITE2": (1e-3,),
}
"""Of the decay; of IGNITE the first multiplier and its rate; of IGNITE2 the multiplier: those of the publication."""
SEARCH_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DRAWN, LOGGED, LOWER, STARTS = 2000, 500, 0.6, 32
EPOCHS, BATCH, WIDTH, SEARCH_STEPS = 25, 50, 64, 100
SANITY = 0.5
CLAIMS = (
    Claim("IGNITE median", "IGNITE's median design is better than that without a penalty, in percent", size=5.0),
    Claim("IGNITE2 median", "IGNITE2's median design is better than that without a penalty, in percent", size=5.0),
    Claim("IGNITE gap", "the prediction is nearer to the truth than that without, in percent", size=5.0),
    Claim("IGNITE above decay", "IGNITE's median design is better than that with weight decay, in percent", size=5.0),
)
Setting = tuple[float, float]
Values = Callable[[Tensor], Tensor]


class Log(NamedTuple):
    """Of a hidden function, what was logged, and what is hidden.

    Args:
        value: of designs ``[N, d]``, in percent of the way from the mean logged design to the maximum.
        scale: what a standard deviation of logged values is in percent.
        x: logged designs.
        y: their values in standard deviations.
        unseen: designs of the same kind that are not logged.
    """

    value: Values
    scale: float
    x: Tensor
    y: Tensor
    unseen: Tensor


def run(scale: str, seed: int) -> Evidence:
    """What each arm finds, mean of the functions."""
    full = scale == "full"
    logs = logs_of(seed, full)
    rate = chosen_rate() if full else RATES[1]
    rows: list[dict[str, Any]] = []
    for arm, strengths in STRENGTHS.items():
        strength, search_rate = chosen(arm) if full else (strengths[-1], SEARCH_RATES[0])
        models = [surrogate(arm, strength, log, rate, seed, full) for log in logs]
        if full and arm == "none":
            check_sane("share of variance that is explained", min(map(explained, models, logs)), SANITY)
        results = [searched(model, log, search_rate, full) for model, log in zip(models, logs)]
        means = {name: sum(result[name] for result in results) / len(results) for name in results[0]}
        rows.append({"arm": arm, "strength": strength, "search rate": search_rate, **means})
    none, decay, constraint, penalty = rows
    return Evidence(
        rows,
        {
            "IGNITE median": constraint["median"] - none["median"],
            "IGNITE2 median": penalty["median"] - none["median"],
            "IGNITE gap": none["gap"] - constraint["gap"],
            "IGNITE above decay": constraint["median"] - decay["median"],
        },
    )


@cache
def chosen_rate() -> float:
    """Adam's rate for all arms: the surrogates without a penalty predict best on seeds that are not reported."""

    def score(rate: float, seed: int) -> float:
        return sum(explained(surrogate("none", 0.0, log, rate, seed, True), log) for log in logs_of(seed, True))

    return best_setting(RATES, score, PILOTS)


@cache
def chosen(arm: str) -> Setting:
    """The strength and the rate of the search with the best median on seeds that are not reported."""
    medians: dict[tuple[Setting, int], float] = {}
    for strength, seed in product(STRENGTHS[arm], PILOTS):
        logs = logs_of(seed, True)
        models = [surrogate(arm, strength, log, chosen_rate(), seed, True) for log in logs]
        for rate in SEARCH_RATES:
            results = [searched(model, log, rate, True) for model, log in zip(models, logs)]
            medians[(strength, rate), seed] = sum(result["median"] for result in results)
    return best_setting(
        tuple(product(STRENGTHS[arm], SEARCH_RATES)), lambda setting, seed: medians[setting, seed], PILOTS
    )


def branin(designs: Tensor) -> Tensor:
    """Minus Branin's function, its domain brought to [-1, 1]^2."""
    x, y = 7.5 * designs[:, 0] + 2.5, 7.5 * designs[:, 1] + 7.5
    valley = y - 5.1 / (4 * math.pi**2) * x.square() + 5 / math.pi * x - 6
    return -(valley.square() + 10 * (1 - 1 / (8 * math.pi)) * x.cos() + 10)


def ackley(designs: Tensor) -> Tensor:
    """Minus Ackley's function on [-5, 5]^d, its domain brought to [-1, 1]^d."""
    x = 5 * designs
    distance, ripples = (-0.2 * x.square().mean(1).sqrt()).exp(), (2 * math.pi * x).cos().mean(1).exp()
    return 20 * distance + ripples - 20 - math.e


class RandomNetwork(nn.Module):
    """32 units of tanh on 10 inputs, of sums with a standard deviation of 1.2.

    Args:
        generator: of the weights.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = 2 / math.sqrt(10) * torch.randn(10, 32, generator=generator, dtype=torch.float64)
        self.outer = torch.randn(32, generator=generator, dtype=torch.float64)

    def forward(self, designs: Tensor) -> Tensor:
        """``[N, 10] -> [N]``."""
        value: Tensor = (designs @ self.inner).tanh() @ self.outer
        return value


@cache
def logs_of(seed: int, full: bool) -> tuple[Log, ...]:
    """Those of the three functions."""
    generator = torch.Generator().manual_seed(seed)
    network = RandomNetwork(generator)
    starts = draw(256 if full else 16, 10, generator)
    top = network(offline_search(network, starts, 200 if full else 5, 0.02, bounds=(-1.0, 1.0))).max()
    hidden: list[tuple[Values, int, float]] = [(branin, 2, -0.397887), (ackley, 5, 0.0), (network, 10, float(top))]
    return tuple(log_of(*function, generator, DRAWN if full else 100) for function in hidden)


def draw(rows: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Designs, uniform on [-1, 1]^d."""
    return 2 * torch.rand(rows, dimensions, generator=generator, dtype=torch.float64) - 1


def log_of(function: Values, dimensions: int, top: float, generator: torch.Generator, drawn: int) -> Log:
    """A log of the lower values of a function with the maximum ``top``."""
    designs = draw(drawn, dimensions, generator)
    lower = designs[function(designs).argsort()[: int(LOWER * drawn)]]
    lower = lower[torch.randperm(len(lower), generator=generator)]
    logged = drawn * LOGGED // DRAWN
    values = function(lower[:logged])
    mean, deviation = float(values.mean()), float(values.std())

    def value(designs: Tensor) -> Tensor:
        return 100 * (function(designs.double()) - mean) / (top - mean)

    scale = 100 * deviation / (top - mean)
    return Log(value, scale, lower[:logged], (values - mean) / deviation, lower[logged:])


def stepper(arm: str, strength: float, model: nn.Module, rate: float) -> Optimizer:
    """The optimizer of an arm."""
    if arm == "weight decay":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=strength)
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    if arm == "IGNITE":
        return IGNITE(adam, model, lam=strength, dual_lr=strength)
    return IGNITE2(adam, model, lam=strength) if arm == "IGNITE2" else adam


def surrogate(arm: str, strength: float, log: Log, rate: float, seed: int, full: bool) -> nn.Module:
    """A surrogate that an arm trained; at smoke scale in float64."""
    kind = torch.float32 if full else torch.float64
    x, y = log.x.to(kind), log.y.to(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    model = nn.Sequential(*layers, nn.Flatten(0)).to(kind)
    optimizer = stepper(arm, strength, model, rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS if full else 3):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH if full else 5):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
            if isinstance(optimizer, IGNITE):
                optimizer.step(inputs=x[rows])
            else:
                optimizer.step()
    return model


@torch.no_grad()
def explained(model: nn.Module, log: Log) -> float:
    """The share of the variance of designs that did not train."""
    truth, predicted = log.value(log.unseen), log.scale * model(log.unseen.float()).double()
    return float(1 - (predicted - truth).square().mean() / truth.var())


def searched(model: nn.Module, log: Log, rate: float, full: bool) -> dict[str, float]:
    """The median and the best of the designs that a search finds, and the gap."""
    kind = torch.float32 if full else torch.float64
    starts = log.x[log.y.argsort(descending=True)[: STARTS if full else 4]].to(kind)
    designs = offline_search(model, starts, SEARCH_STEPS if full else 5, rate, bounds=(-1.0, 1.0))
    with torch.no_grad():
        truth, predicted = log.value(designs), log.scale * model(designs).double()
    gap = (predicted - truth).quantile(0.5).abs()
    return {"median": float(truth.quantile(0.5)), "best": float(truth.max()), "gap": float(gap)}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The median design of each arm."""
    rows = [{"arm": row["arm"], "median design, %": row["median"]} for one in evidence for row in one.rows]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="median design, %")
    return drawn
