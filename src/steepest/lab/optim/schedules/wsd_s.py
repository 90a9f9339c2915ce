"""The river valley: a high rate moves along, a decay reveals it; one run with a decay before each budget.

Set-up of the claims: (a) c = -0.01 x, gamma 20, noise 10, rate 0.05, 2,000 steps, 200 runs. Observed before: at a
constant rate a loss of 2.31 up the hill and 1.00 along the river; at a tenth of it 0.12 and 0.10; with a linear decay
over the last tenth 0.07 and 0.95. (b) tiny Shakespeare with a transformer, budgets of 500, 1,000 and 2,000 steps: WSD-S
within 0.01 nats of separate cosine runs at each, and better than a cosine that starts again after each budget.

Here the budgets are 150, 300 and 600 steps with 30 of warm-up, with 2 layers of width 48 on 32 characters. All runs of
a seed share the start and the order of the data; losses are those on 1,200 held-out windows. "Better than cyclic" is
given no number: 0.01 nats are taken, at the mean of the second and third budget (until the first both have had the same
steps). The claim in (a) is that of the publication, its numbers are ours.

The baselines are fair: each schedule has the rate of three that is best for it in the mean over all budgets, on a seed
that is not reported (2e-2 for all, within the grid; 8e-2 was tried too and is worse); cosine falls to the same tenth of
its rate as WSD-S, and must reach 2.25 nats at the last budget. Sixteen seeds, longer than an experiment should take:
seeds differ by 0.013 nats, and 0.01 nats need them.

Looked at before this run, with nine seeds and the grid to 2e-2: WSD-S was above cosine by 0.026 nats at the last
budget. Longer decays were tried for that on three seeds that are not reported: with 0.1, 0.2 and 0.4 of each interval
WSD-S is above cosine by 0.013, 0.003 and 0.004 nats at the last budget, and by -0.006, -0.011 and 0.001 at the second;
the card's tenth is used. (With rates that were chosen by runs of 400 steps alone WSD-S had been further above.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.optim import Optimizer

from ....core.schedule import Curve, Piece, Schedule
from ....optim.schedules.wsd_s import WSDS, simulate_river
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import UNREPORTED, best_setting, check_sane
from ._shakespeare import begun, held_out_loss

SEEDS = 16
RATES = (1e-2, 2e-2, 4e-2)
BUDGETS, WARM_UP = (150, 300, 600), 30
WSD_S, COSINE, CYCLES = "WSD-S", "cosine for each budget", "cosine that starts again"
SANITY = 2.25
CLAIMS = (
    Claim("hill", "the decay takes the loss up the hill from 2.31 to 0.07 (difference)", size=1.0, threshold=1.0),
    Claim("river", "it is nearly as far along the river as at a constant rate: 0.95", size=0.05, threshold=0.9),
    Claim("slow", "a tenth of the rate gets only a tenth as far: 0.10", size=0.1, threshold=0.2, greater=False),
    *(
        Claim(
            f"budget {number}",
            f"at budget {number} WSD-S is within 0.01 nats of a cosine run for it",
            size=0.01,
            threshold=0.01,
            greater=False,
        )
        for number in (1, 2, 3)
    ),
    Claim("cyclic", "WSD-S is below a cosine that starts again, at budgets 2 and 3 (mean, nats)", size=0.01),
)


class Cosines(Schedule):
    """Warm-up, then a cosine to a tenth before each budget, from the full rate each time."""

    def __init__(self, optimizer: Optimizer, warmup: int, budgets: Sequence[int]) -> None:
        falls = [Piece(budget, 1.0, 0.1, "cosine", closed=True) for budget in budgets]
        self.curve = Curve([Piece(warmup, 0.01, 1.0), *falls])
        super().__init__(optimizer)


def run(scale: str, seed: int) -> Evidence:
    """The valley by simulation; losses of three schedules at three budgets."""
    full = scale == "full"
    budgets, warmup = (BUDGETS, WARM_UP) if full else ((2, 4, 7), 1)
    rates = best_rates() if full else dict.fromkeys((WSD_S, COSINE, CYCLES), RATES[0])
    rows: list[dict[str, Any]] = []
    for arm, (loss, hill, river) in (valley := simulated(seed, 2000 if full else 20, 200 if full else 10)).items():
        rows.append({"arm": f"valley, {arm}", "loss": loss, "hill": hill, "river": river})
    losses = {arm: of_arm(arm, seed, rates[arm], warmup, budgets, full) for arm in rates}
    for arm, values in losses.items():
        rows += [
            {"arm": arm, "rate": rates[arm], "steps": steps, "nats": value} for steps, value in zip(budgets, values)
        ]
    if full:
        check_sane("nats of cosine at the last budget, negative", -losses[COSINE][-1], -SANITY)
    excess = [own - separate for own, separate in zip(losses[WSD_S], losses[COSINE])]
    effects = {
        "hill": valley["constant"][1] - valley["linear decay"][1],
        "river": valley["linear decay"][2],
        "slow": valley["a tenth"][2],
        **{f"budget {number}": value for number, value in enumerate(excess, 1)},
        "cyclic": sum(again - own for again, own in zip(losses[CYCLES][1:], losses[WSD_S][1:])) / 2,
    }
    return Evidence(rows, effects)


def simulated(seed: int, steps: int, runs: int) -> dict[str, tuple[float, float, float]]:
    """Loss, hill and river of three schedules in the valley."""
    decay = Curve([Piece(0.9 * steps, 0.05, 0.05, "constant"), Piece(steps, 0.05, 0.0)])
    schedules: dict[str, Callable[[int], float]] = {
        "constant": lambda t: 0.05,
        "a tenth": lambda t: 0.005,
        "linear decay": decay,
    }
    return {
        arm: tuple(simulate_river(rate, steps, runs=runs, generator=torch.Generator().manual_seed(seed)))
        for arm, rate in schedules.items()
    }


def trained(
    schedule: Callable[..., Schedule], seed: int, rate: float, warmup: int, budgets: Sequence[int], full: bool
) -> list[float]:
    """Held-out loss after the step at the index of each budget."""
    progress = begun(seed, rate, smoke=not full)
    driver = schedule(progress.optimizer, warmup, list(budgets))
    losses = []
    for before, budget in itertools.pairwise((-1, *budgets)):
        progress.steps(budget - before, driver)
        losses.append(held_out_loss(progress.model, 1200 if full else 8, not full))
    return losses


def of_arm(arm: str, seed: int, rate: float, warmup: int, budgets: Sequence[int], full: bool) -> list[float]:
    """Held-out loss of a schedule at each budget; one run for all, or one for each."""
    if arm == COSINE:
        return [trained(Cosines, seed, rate, warmup, [budget], full)[0] for budget in budgets]
    return trained(WSDS if arm == WSD_S else Cosines, seed, rate, warmup, budgets, full)


@cache
def best_rates() -> dict[str, float]:
    """The best rate of each schedule, by the mean over the budgets, on a seed that is not reported."""

    def of(arm: str) -> float:
        return best_setting(
            RATES, lambda rate, seed: -sum(of_arm(arm, seed, rate, WARM_UP, BUDGETS, True)), (UNREPORTED,)
        )

    return {arm: of(arm) for arm in (WSD_S, COSINE, CYCLES)}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Loss at each budget."""
    selected = [Evidence([row for row in e.rows if "nats" in row], e.effects) for e in evidence]
    drawn: Figure = arms_figure(selected, x="steps", y="nats")
    return drawn
