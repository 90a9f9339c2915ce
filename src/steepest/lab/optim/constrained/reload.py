"""Plain ascent-descent circles around the solution of a constrained decision process; optimistic steps come to it.

Set-up of the card: 8 states, 3 actions, discount 0.9, transition rows of a Dirichlet distribution with 0.5, reward and
cost uniform in [0, 1], a uniform first state; the threshold half way between the least possible cost and that of the
unconstrained optimum. eta = 3, eta_mu = 1, 6,000 steps; the exact solution by the linear program of occupancies. Each
seed is another process. The card measured two: the gap of the constraint swings by 0.029 and 0.054 over the last 500
plain iterates, by 3e-5 and 2e-6 of the optimistic ones; the last value is off by 2e-3 and 5e-3, and by less than 1e-5;
multipliers are within 1e-4 of the dual. With rates of 0.1 neither has converged by then.

Claims are in decimal logarithms where numbers span decades, with differences below 1e-12 counted as that. Processes
differ by several decades (three pilots: the last value off by 1e-12, 1e-8 and 5e-4), so that there are 24 of them.

The baseline is fair: it differs by the last gradient alone and has the same rates; its iterates must be right on
average (mean gap of the second half within 0.05 of 0), as theory promises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from ....optim.constrained.reload import ConstrainedMDP, Iterates, Optimum, ReLOAD
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

SEEDS, ETA, ETA_MU, LAST = 24, 3.0, 1.0, 500
CLAIMS = (
    Claim("plain swing", "swing of the gap over the last 500 plain iterates is above 0.01", size=0.02, threshold=0.01),
    Claim(
        "swing", "that of the optimistic ones is below 1e-3 (log10)", size=3.0, threshold=-3.0, greater=False,
    ),
    Claim("times", "it is 100 times smaller (log10 of the ratio)", size=3.0, threshold=2.0),
    Claim(
        "value", "the last optimistic value is within 1e-5 of the optimum (log10)",
        size=3.0, threshold=-5.0, greater=False,
    ),
    Claim("plain value", "the last plain value is off by more than 1e-3", size=0.001, threshold=0.001),
    Claim(
        "dual", "the last optimistic multiplier is within 1e-4 of the dual (log10)",
        size=3.0, threshold=-4.0, greater=False,
    ),
    Claim("slow", "at rates of 0.1 the optimistic value is off by more than 1e-3", size=0.001, threshold=0.001),
)  # fmt: skip


def run(scale: str, seed: int) -> Evidence:
    """Both methods on one process."""
    full = scale == "full"
    mdp, best = process(seed, full)
    steps, last = (6000, LAST) if full else (40, 10)
    ends = {name: ReLOAD(mdp, ETA, ETA_MU, name == "optimistic").run(steps) for name in ("plain", "optimistic")}
    slow = ReLOAD(mdp, 0.1, 0.1).run(steps)
    if full:
        mean = float(ends["plain"].gaps[steps // 2 :].mean())
        check_sane("mean gap of plain iterates, negative size", -abs(mean), -0.05)
    rows: list[dict[str, Any]] = [
        {"arm": name, "swing": swing(end, last), "off": off(mdp, end, best), "dual off": dual_off(end, best)}
        for name, end in (*ends.items(), ("optimistic, rates 0.1", slow))
    ]
    plain, ours, _ = rows
    effects = {
        "plain swing": plain["swing"],
        "swing": decades(ours["swing"]),
        "times": decades(plain["swing"]) - decades(ours["swing"]),
        "value": decades(ours["off"]),
        "plain value": plain["off"],
        "dual": decades(ours["dual off"]),
        "slow": rows[2]["off"],
    }
    return Evidence(rows, effects)


def process(seed: int, full: bool) -> tuple[ConstrainedMDP, Optimum]:
    """A random process with a threshold that binds, and its solution."""
    states, actions = (8, 3) if full else (3, 2)
    torch_seed = torch.Generator().manual_seed(7000 + seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=torch_seed, dtype=torch.float64)

    # the square of a normal variable is gamma-distributed with shape 1/2: rows of a Dirichlet distribution with 0.5
    weights = torch.randn((states, actions, states), generator=torch_seed, dtype=torch.float64).square()
    transitions = weights / weights.sum(-1, keepdim=True)
    reward, cost = uniform(states, actions), uniform(states, actions)
    start = torch.full((states,), 1 / states, dtype=torch.float64)

    def solved(gain: torch.Tensor, threshold: float) -> tuple[ConstrainedMDP, Optimum]:
        mdp = ConstrainedMDP(transitions, gain, cost[None], torch.tensor([threshold]).double(), start, 0.9)
        best = mdp.optimum()
        assert best is not None
        return mdp, best

    _, cheapest = solved(-cost, 2.0)
    free, dearest = solved(reward, 2.0)
    threshold = (-cheapest.value + float(free.values(dearest.policy)[1][1])) / 2
    return solved(reward, threshold)


def swing(end: Iterates, last: int) -> float:
    """Largest less smallest gap of the last iterates."""
    gaps = end.gaps[-last:, 0]
    return float(gaps.max() - gaps.min())


def off(mdp: ConstrainedMDP, end: Iterates, best: Optimum) -> float:
    """How far the value of the last policy is from the optimum."""
    return abs(float(mdp.values(end.policy)[1][0]) - best.value)


def dual_off(end: Iterates, best: Optimum) -> float:
    """How far the last multiplier is from the dual."""
    return abs(float(end.last_multipliers[0] - best.multipliers[0]))


def decades(value: float) -> float:
    """The decimal logarithm, -12 at least."""
    return math.log10(max(value, 1e-12))


def figure(evidence: Sequence[Evidence]) -> Figure:
    """How far the last value is from the optimum."""
    drawn: Figure = bars_figure(evidence, y="off")
    drawn.axes[0].set_xscale("log")
    return drawn
