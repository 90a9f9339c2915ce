"""Itakura-Saito loss: the certainty equivalents of squared errors of exponentials, without their instability.

First part of the claim: one value is regressed on targets N(m, 1) by gradient descent at a rate of .05, 3,000 steps of
256 targets each, alpha = 1, so the truth is m - 1/2. Expected: from V = 0 at m = 2 both losses end at 1.502 (1.5 is
true); at m = 10 Itakura-Saito ends at 9.502, while the squared error of exponentials (EMSE) is stuck at 2.85 from V = 0
and at 12.0 from V = 12. "The same answer" is taken as within .05 of the truth, "stuck" as off by more than 5 and more
than 2. At m = -10 from V = 0 a plain step diverges, and a cap of 5 prevents it. The rate of .05 is the claim's;
besides, each loss has the best of one grid of rates at m = 10, both starts, chosen on seeds that are not reported.

Second part: Q-learning on a walk along a cliff. Two rows of six cells; the goal is five steps along the near row, each
of which falls with probability .05 before the goal (reward -8 more, and the walk ends); the way over the far row takes
seven steps without risk. A step costs 1. By the recursion, the way along the cliff is worth -6.0 to a neutral walker
and -9.3 at alpha = 1, the safe one -7 to both. Ten tables a seed learn from 32 draws of each state and action a step,
1,000 steps, at the best rate of each loss on seeds that are not reported. Expected: at alpha = 1 the greedy path is the
safe one, at alpha = 0 the short one (nine of ten tables or more), and the values of EMSE at alpha = 1 are further from
the exact ones than those of Itakura-Saito.

The baseline is fair: the squared error (alpha = 0) must come within .2 of the exact values, which every seed checks,
and EMSE gives the right answer where exponentials are moderate, which is a claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....core.value_loss import ValueLoss
from ....losses.value.itakura_saito import EMSELoss, ItakuraSaitoLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane

SEEDS = 10
IS, CAPPED, EMSE, NEUTRAL = "Itakura-Saito", "Itakura-Saito, cap 5", "EMSE", "squared error"
LOSSES: dict[str, Callable[[], ValueLoss]] = {
    IS: lambda: ItakuraSaitoLoss(1.0, reduction="sum"),
    CAPPED: lambda: ItakuraSaitoLoss(1.0, cap=5.0, reduction="sum"),
    EMSE: lambda: EMSELoss(1.0, reduction="sum"),
    NEUTRAL: lambda: ItakuraSaitoLoss(0.0, reduction="sum"),
}
CASES = ((2.0, 0.0), (10.0, 0.0), (10.0, 12.0), (-10.0, 0.0))
"""Mean of the targets, and where the value starts."""
RATE = 0.05
GRID = tuple(float(f"{base}e{power}") for power in range(-8, 10) for base in (1, 3))
RATES = {
    ("regression", IS): 1e-2,
    ("regression", EMSE): 10.0,
    ("walk", CAPPED): 3e-2,
    ("walk", EMSE): 1e-6,
    ("walk", NEUTRAL): 3e-2,
}
"""The best rate of each loss: what :func:`choose_rates` gives."""
WORST = 100.0
"""An error that is larger, or no number, counts as this."""
CLAIMS = (
    Claim(
        "IS at 2",
        "targets around 2: Itakura-Saito ends within .05 of 1.5 (1.502 expected)",
        size=0.04,
        threshold=0.05,
        greater=False,
    ),
    Claim(
        "EMSE at 2",
        "targets around 2: EMSE ends within .05 of 1.5 (1.502 expected)",
        size=0.04,
        threshold=0.05,
        greater=False,
    ),
    Claim(
        "IS at 10",
        "targets around 10: Itakura-Saito ends within .05 of 9.5 from both starts (9.502 expected)",
        size=0.04,
        threshold=0.05,
        greater=False,
    ),
    Claim(
        "EMSE from below",
        "targets around 10, from 0: EMSE is off by more than 5 (2.85 in place of 9.5 expected)",
        size=1.65,
        threshold=5.0,
    ),
    Claim(
        "EMSE from above",
        "targets around 10, from 12: EMSE is off by more than 2 (12.0 in place of 9.5 expected)",
        size=0.5,
        threshold=2.0,
    ),
    Claim(
        "best rates",
        "targets around 10, each loss at its best rate: EMSE is further off than Itakura-Saito (.5 expected)",
        size=0.5,
        ours=True,
    ),
    Claim(
        "plain diverges",
        "targets around -10, from 0: without a cap the value is off by more than 10 after 3,000 steps",
        size=10.0,
        threshold=10.0,
        ours=True,
    ),
    Claim(
        "cap",
        "targets around -10, from 0: with a cap of 5 it ends within .05 of -10.5",
        size=0.04,
        threshold=0.05,
        greater=False,
        ours=True,
    ),
    Claim("safe at 1", "cliff, alpha = 1: nine tables in ten or more take the safe path", size=0.1, threshold=0.9),
    Claim("short at 0", "cliff, alpha = 0: nine tables in ten or more take the short path", size=0.1, threshold=0.9),
    Claim("walk error", "cliff, alpha = 1: EMSE's values are further from the exact ones (.1 expected)", size=0.1),
)
COLUMNS, GOAL = 6, 5
RIGHT, UP, DOWN = range(3)
SLIP, FALL = 0.05, 8.0
DRAWS = 32


def run(scale: str, seed: int) -> Evidence:
    """The error of one value in four cases, and paths and errors of tables along the cliff."""
    full = scale == "full"
    steps, walk_steps, tables = (3000, 1000, 10) if full else (60, 40, 2)
    rows: list[dict[str, str | float]] = []
    errors = {}
    for arm in (IS, CAPPED, EMSE):
        single = regress(arm, [RATE], seed, steps)[0]
        for (mean, start), value in zip(CASES, single.tolist()):
            errors[arm, mean, start] = wrong = bounded(value - (mean - 0.5))
            if arm != EMSE or mean > 0:
                rows.append({"arm": arm, "case": f"mean {mean:g} from {start:g}", "rate": RATE, "error": wrong})
    best = {}
    for arm in (IS, EMSE):
        rate = RATES["regression", arm]
        best[arm] = error_at_10(arm, [rate], seed, steps)[0]
        rows.append({"arm": arm, "case": "mean 10, best rate", "rate": rate, "error": best[arm]})
    walks = {}
    for arm in (CAPPED, EMSE, NEUTRAL):
        rate = RATES["walk", arm]
        table = learn(arm, [rate], seed, walk_steps, tables)
        wrong = table_error(arm, table)[0]
        walks[arm] = {path: float(np.mean([p == path for p in map(path_of, table[0])])) for path in ("safe", "short")}
        walks[arm]["error"] = wrong
        rows.append({"arm": arm, "case": "cliff", "rate": rate, "error": wrong} | {"safe": walks[arm]["safe"]})  # type: ignore[arg-type]
    if full:
        check_sane("minus the error of the squared error on the cliff", -walks[NEUTRAL]["error"], -0.2)
    effects = {
        "IS at 2": errors[IS, 2.0, 0.0],
        "EMSE at 2": errors[EMSE, 2.0, 0.0],
        "IS at 10": max(errors[IS, 10.0, 0.0], errors[IS, 10.0, 12.0]),
        "EMSE from below": errors[EMSE, 10.0, 0.0],
        "EMSE from above": errors[EMSE, 10.0, 12.0],
        "best rates": best[EMSE] - best[IS],
        "plain diverges": errors[IS, -10.0, 0.0],
        "cap": errors[CAPPED, -10.0, 0.0],
        "safe at 1": walks[CAPPED]["safe"],
        "short at 0": walks[NEUTRAL]["short"],
        "walk error": walks[EMSE]["error"] - walks[CAPPED]["error"],
    }
    return Evidence([{"safe": -1.0, **row} for row in rows], effects)


def choose_rates() -> dict[tuple[str, str], float]:
    """The rate of :data:`GRID` with the least error over two pilot seeds, by part and loss."""
    chosen = {}
    for arm in (IS, EMSE):
        errors = {seed: error_at_10(arm, GRID, seed, 3000) for seed in PILOTS[:2]}
        chosen["regression", arm] = _best(errors)
    for arm in (CAPPED, EMSE, NEUTRAL):
        errors = {seed: table_error(arm, learn(arm, GRID, seed, 1000, 10)) for seed in PILOTS[:2]}
        chosen["walk", arm] = _best(errors)
    return chosen


def _best(errors: dict[int, list[float]]) -> float:
    return best_setting(GRID, lambda rate, seed: -errors[seed][GRID.index(rate)], errors)


def bounded(difference: float) -> float:
    """Its size, or :data:`WORST` where that is larger or no number."""
    return abs(difference) if abs(difference) < WORST else WORST


def regress(arm: str, rates: Sequence[float], seed: int, steps: int) -> Tensor:
    """The value at the end in each case ``[rates, cases]``; all rates see the same targets."""
    draws = np.random.default_rng([seed, 1])
    means, starts = torch.tensor(CASES, dtype=torch.float64).T
    value = starts.repeat(len(rates), 1).requires_grad_()
    step = torch.tensor(rates, dtype=torch.float64)[:, None]
    loss = LOSSES[arm]()
    for _ in range(steps):
        target = means[:, None] + torch.as_tensor(draws.standard_normal((len(CASES), 256)))
        target = target.expand(len(rates), -1, -1)
        (slope,) = torch.autograd.grad(loss(value.unsqueeze(-1).expand_as(target), target) / 256, value)
        with torch.no_grad():
            value -= step * slope
    return value.detach()  # type: ignore[no-any-return]


def error_at_10(arm: str, rates: Sequence[float], seed: int, steps: int) -> list[float]:
    """The mean error over both starts at m = 10, for each rate."""
    values = regress(arm, rates, seed, steps)[:, 1:3]
    return [float(np.mean([bounded(v - 9.5) for v in pair])) for pair in values.tolist()]


def moves() -> tuple[Tensor, Tensor]:
    """The cell that each action leads to ``[12, 3]`` and the chance to fall on the way; cells are 6 row + column."""
    to, chance = torch.empty(2 * COLUMNS, 3, dtype=torch.long), torch.zeros(2 * COLUMNS, 3, dtype=torch.float64)
    for row in range(2):
        for column in range(COLUMNS):
            cell = COLUMNS * row + column
            to[cell, RIGHT] = cell + (column < COLUMNS - 1)
            to[cell, UP] = COLUMNS + column
            to[cell, DOWN] = column
            chance[cell] = SLIP * ((to[cell] != cell) & (to[cell] < GOAL))  # the near row before the goal
    return to, chance


def learn(arm: str, rates: Sequence[float], seed: int, steps: int, tables: int) -> Tensor:
    """Q ``[rates, tables, 12, 3]`` by Q-learning with one loss, from draws of every state and action."""
    to, chance = moves()
    draws = np.random.default_rng([seed, 2])
    shape = (len(rates), tables, *to.shape)
    q = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(rates, dtype=torch.float64)[:, None, None, None]
    loss = LOSSES[arm]()
    live = torch.arange(2 * COLUMNS) != GOAL
    for _ in range(steps):
        falls = torch.as_tensor(draws.binomial(DRAWS, chance.numpy(), (tables, *chance.shape)) / DRAWS)
        weight = torch.stack([falls, 1 - falls], -1).expand(*shape, 2) * live[:, None, None]
        after = torch.where(live, q.detach().amax(-1), 0.0)[:, :, to]
        target = torch.stack([torch.full_like(after, -1 - FALL), after - 1], -1)
        total = loss(q.unsqueeze(-1).expand_as(target), target, weight=weight)
        (slope,) = torch.autograd.grad(total, q)
        with torch.no_grad():
            q -= step * torch.where(live[:, None], slope, 0.0)
    return q.detach()


def exact(alpha: float) -> Tensor:
    """Q ``[12, 3]`` of the recursion V = CE[r + V'] with known chances, iterated to its end."""
    to, chance = moves()
    q = torch.zeros(to.shape, dtype=torch.float64)
    for _ in range(100):
        v = q.amax(-1)
        v[GOAL] = 0.0
        fall, after = torch.full_like(chance, -1 - FALL), v[to] - 1
        if alpha == 0:
            q = chance * fall + (1 - chance) * after
        else:
            q = -torch.log(chance * torch.exp(-alpha * fall) + (1 - chance) * torch.exp(-alpha * after)) / alpha
    return q


def table_error(arm: str, tables: Tensor) -> list[float]:
    """The mean absolute error of each rate's tables against the exact ones, the goal left out."""
    live = torch.arange(2 * COLUMNS) != GOAL
    wrong = (tables - exact(0.0 if arm == NEUTRAL else 1.0)).abs()[:, :, live].nan_to_num(WORST).clamp(max=WORST)
    return [float(w) for w in wrong.mean((1, 2, 3))]


def path_of(q: Tensor) -> str:
    """Where the greedy way from the start leads: ``"short"`` along the cliff, ``"safe"`` around, or ``"other"``."""
    to, _ = moves()
    cell, cells = 0, []  # type: ignore[var-annotated]
    while cell != GOAL and len(cells) < 2 * COLUMNS:
        cell = int(to[cell, q[cell].argmax()])
        cells.append(cell)
    return {(1, 2, 3, 4, 5): "short", (6, 7, 8, 9, 10, 11, 5): "safe"}.get(tuple(cells), "other")


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The error of each loss in each case."""
    named = [
        Evidence([row | {"arm": f"{row['case']}: {row['arm']}"} for row in of_seed.rows], of_seed.effects)
        for of_seed in evidence
    ]
    drawn = bars_figure(named, y="error")
    drawn.axes[0].set_xscale("symlog", linthresh=0.01)
    drawn.axes[0].set_xlabel("error, in the unit of the reward")
    return drawn
