"""Regret of policy optimisation with a log barrier, reduced estimates and raw ones, against an adversary that switches.

Set-up of the card: a process of 2 steps, 3 states and 4 actions, features of 6 numbers (a constant and a unit vector of
5, drawn once), in which losses and transitions are linear, so that every Q-function is; 200 to 20,000 episodes. Losses
switch among three vectors of parameters: each episode has those that are worst for the policy about to be played, so
that regret is never below 0 and constant play loses in proportion to the episodes. (Two losses in phases of a quarter
of the episodes were tried first: learners had less loss than the best fixed policy.) Regret is exact: expected losses
of the policies played, less those of the best fixed policy in hindsight. All methods have the same simulator, of 256
visits, and the ridge 0.05 / K^0.5 in K episodes. Rate and bonus are c / K^0.5, each with a c of its own.

Claims, the card's: the slope of log regret over log episodes is about 0.5 (within 0.15) for both methods; exponential
weights with raw estimates have larger regret at 20,000 episodes (log10 of the ratio), and need a smaller rate than the
same weights with reduced estimates (log10 of the ratio of the rates that serve best at 2,000 episodes, on each seed).
The card has no sizes: 0.15 for regret, a factor of 1.4, and half a decade. Rates of the log barrier are on another
scale, and not compared. A first run of 16 seeds had 32 visits, far fewer than 1 / ridge, and regret with so heavy a
tail that it could tell nothing: one learner in ten had five times the median, with each method. After it visits, seeds,
the ridge and the sizes were set anew, and regret was compared by logarithms; the bounds of the slopes stayed.

What was checked where raw estimates do no worse: an episode of the log barrier and one of reduced estimates by loops in
float64 (tests; raw ones in a bandit of one step); another ridge
(0.5 for 0.05) and 32 visits, in the first run, where mean regret of raw estimates was least with the larger ridge and
behind that of reduced ones with the smaller, by less than 16 seeds can tell. Tuned to this process, exponential weights
aren't in the regime that the bounds speak of, where one estimate of -H / ridge moves a policy at once.

The baseline is fair: raw estimates have the same simulator, features and bonus, and each method takes the c of rate
and bonus (:data:`RATES`, :data:`BONUSES`) with the least mean regret in 2,000 episodes of eight seeds that are not
reported (:func:`choose_setting`); no rate stands at the end of its grid. In 2,000 episodes raw estimates must save half
the regret of uniform play, which every run checks. Seeds are the draws of episodes and of simulated visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....optim.online.adversarial_mdp import METHODS, EpisodicMDP, LinearQPolicyOptimizer
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import UNREPORTED, check_sane

SEEDS, PILOTS, DRAWS, RIDGE, SANITY = 24, 8, 256, 0.05, 0.5
EPISODES, CHOICE = (200, 2000, 20_000), 2000
RATES = (0.3, 1.0, 3.0, 10.0, 30.0)
BONUSES = (0.0, 0.1, 1.0, 10.0)
BARRIER, REDUCED, RAW = METHODS
SETTINGS = {BARRIER: (3.0, 0.1), REDUCED: (1.0, 0.1), RAW: (1.0, 0.0)}
"""The c of rate and bonus: what :func:`choose_setting` gives."""
CLAIMS = (
    Claim("log barrier", "distance of the log barrier's slope from 0.5", 0.1, 0.15, greater=False),
    Claim("reduced", "distance of the slope with reduced estimates from 0.5", 0.1, 0.15, greater=False),
    Claim("raw over barrier", "log10 of the regret with raw estimates over that of the log barrier", 0.15),
    Claim("raw over reduced", "log10 of the regret with raw estimates over that with reduced ones", 0.15),
    Claim("rate", "log10 of the rate that serves reduced estimates best over that of raw ones", 0.5),
)


class World(NamedTuple):
    """A process, its features, and the losses among which the adversary chooses."""

    process: EpisodicMDP
    phi: Tensor
    losses: Tensor


def run(scale: str, seed: int) -> Evidence:
    """Regret of each method."""
    full = scale == "full"
    regrets, best = measured(full)
    episodes = EPISODES if full else (10, 20)
    place = seed if full else 0
    rows: list[dict[str, Any]] = []
    slopes, ends = {}, {}
    for method in METHODS:
        values = [float(regrets[method, number][place]) for number in episodes]
        rows += [{"arm": method, "episodes": number, "regret": value} for number, value in zip(episodes, values)]
        slopes[method] = float(np.polyfit(np.log(episodes), np.log(values), 1)[0])
        ends[method] = values[-1]
    effects = {
        "log barrier": abs(slopes[BARRIER] - 0.5),
        "reduced": abs(slopes[REDUCED] - 0.5),
        "raw over barrier": float(np.log10(ends[RAW] / ends[BARRIER])),
        "raw over reduced": float(np.log10(ends[RAW] / ends[REDUCED])),
        "rate": float(np.log10(float(best[REDUCED][place]) / float(best[RAW][place]))),
    }
    return Evidence(rows, effects)


@cache
def measured(full: bool) -> tuple[dict[tuple[str, int], Tensor], dict[str, Tensor]]:
    """Regret by method and episodes at its setting, and the rate that serves each seed best."""
    seeds, choice, episodes = (SEEDS, CHOICE, EPISODES) if full else (1, 20, (10, 20))
    regrets: dict[tuple[str, int], Tensor] = {}
    best = {}
    for number, method in enumerate(METHODS):
        rate, bonus = SETTINGS[method]
        rates = (rate,) if method == BARRIER else RATES
        grid = torch.tensor([(value, bonus) for value in rates], dtype=torch.float64)
        over_rates = regret(method, grid.repeat_interleave(seeds, 0), choice, 100 + number).view(len(rates), seeds)
        best[method] = torch.tensor(rates)[over_rates.argmin(0)]
        setting = torch.tensor([SETTINGS[method]], dtype=torch.float64).expand(seeds, 2)
        for length in episodes:
            regrets[method, length] = (
                over_rates[rates.index(rate)] if length == choice else regret(method, setting, length, 200 + number)
            )
    if full:
        share = float(regrets[RAW, choice].mean()) / uniform(choice)
        check_sane("share of uniform play's regret that raw estimates save", 1 - share, SANITY)
    return regrets, best


def choose_setting(method: str) -> tuple[float, float]:
    """The c of rate and bonus with the least mean regret over seeds that are not reported."""
    grid = list(product(RATES, BONUSES))
    settings = torch.tensor(grid, dtype=torch.float64).repeat_interleave(PILOTS, 0)
    means = regret(method, settings, CHOICE, UNREPORTED).view(len(grid), PILOTS).mean(1)
    return grid[int(means.argmin())]


def regret(method: str, settings: Tensor, episodes: int, seed: int) -> Tensor:
    """The regret of learners side by side, of c of rate and bonus."""
    process, phi, losses = world()
    rate, bonus = settings.T / episodes**0.5
    learner = LinearQPolicyOptimizer(
        process,
        phi,
        method,
        rate,
        RIDGE / episodes**0.5,
        bonus=bonus,
        draws=DRAWS,
        generator=torch.Generator().manual_seed(seed),
    )
    suffered, sums = torch.zeros(len(settings)).double(), torch.zeros_like(learner.policy)
    for _ in range(episodes):
        worst, index = process.values(learner.policy[:, None], losses)[1].max(1)
        suffered, sums = suffered + worst, sums + losses[index]
        learner.step(losses[index])
    return suffered - torch.tensor([process.best(total)[0] for total in sums], dtype=torch.float64)


def uniform(episodes: int) -> float:
    """The regret of uniform play."""
    process, _, losses = world()
    worst, index = process.values(torch.full(process.shape, 0.25).double(), losses)[1].max(0)
    return episodes * (float(worst) - process.best(losses[int(index)])[0])


@cache
def world() -> World:
    """Features of a constant and a unit vector; losses and transitions are linear in them."""
    generator = torch.Generator().manual_seed(11)

    def unit(*shape: int) -> Tensor:
        rows = torch.randn(shape, generator=generator, dtype=torch.float64)
        lengths: Tensor = rows.norm(dim=-1, keepdim=True)
        return rows / lengths

    vectors = unit(3, 4, 5)
    second = 0.5 + 0.5 * vectors @ unit(5)
    transitions = torch.stack([torch.zeros_like(second), second, 1 - second], -1)[None]
    losses = 0.5 + 0.5 * torch.einsum("sad,rhd->rhsa", vectors, unit(3, 2, 5))
    phi = torch.cat([torch.ones(3, 4, 1).double(), vectors], -1) / 2**0.5
    return World(EpisodicMDP(torch.tensor([1.0, 0.0, 0.0]), transitions), phi, losses)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Regret over episodes."""
    drawn: Figure = arms_figure(evidence, x="episodes", y="regret", label="arm")
    return drawn
