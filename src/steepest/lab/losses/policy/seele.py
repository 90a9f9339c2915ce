"""SEELE: hints steered to half solved let a policy learn strings that it never guesses on its own.

Each of 8 problems asks for a secret string of 8 symbols out of 4, all right for a reward of 1. The policy is a table of
logits for each problem and position, from zeros: without a hint it is right once in 4^8 = 65536. A step gives each
problem 32 rollouts, 60 steps. Arms: no hint; half of the solution as a hint; the same with imitation of the hint;
adaptive hints as published, in 4 rounds of 8 rollouts, steered to an accuracy of 1/2, with the probability of the last
round's hint as imitation; the same with its mean log-likelihood, the library's default. Advantages are rewards less
their mean over the 32; the divergence from the first policy and the imitation, where there is one, weigh 1e-3 as
published. Plain gradient descent; each arm has the rate of one grid with the largest share of problems solved, the mean
over the steps, on three seeds that are not reported (the middle one where equal).

A problem is solved without a hint when the policy's probability of its string is above 1/2; "the most" is taken as at
least a quarter of the problems more than any other arm, at the end. The mean accuracy of a round is over the steps and
problems that were not solved when the step began; "approaches .5 by round 3" as within .15 of it, the mean over a run.
The control is sane where the probability of success without a hint begins at 4^-8, which is exact here: "no learning"
is no problem solved. 40 seeds, because five could not have found a difference of .05 in that share: of 15360 rollouts
without a hint one is right by luck in a fifth of the runs.

A fixed half with imitation was added to the arms, rates above 100 to the grid, and the divergence to the loss after
runs on unreported seeds, where rates had ended at the edge of the grid. In a table nothing but imitation can teach the
symbols that a fixed hint shows; by its log-likelihood it does so at rates from 1000 on, ten times what a policy
gradient stands here: that is supervised learning, and the best rate of both arms that have it is the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.policy.seele import HintScheduler, seele_loss
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import PILOTS, check_sane

PROBLEMS, LENGTH, SYMBOLS, ROUNDS, ROLLOUTS = 8, 8, 4, 4, 8
GAMMA, BETA = 1e-3, 1e-3
ARMS = ("no hint", "half", "half, imitated", "adaptive", "adaptive, log-likelihood")
CLAIMS = (
    Claim("no hint", "without a hint nothing is learnt: the share of problems solved is 0", size=0.05, threshold=0.05,
          greater=False),
    Claim("over none", "adaptive hints solve at least a quarter of the problems more than none", size=0.25,
          threshold=0.25),
    Claim("over half", "and a quarter more than a fixed half", size=0.25, threshold=0.25),
    Claim("over imitated half", "and a quarter more than a fixed half whose hint is imitated too", size=0.25,
          threshold=0.25, ours=True),
    Claim("third round", "the mean accuracy of round 3 is within .15 of one half", size=0.15, threshold=0.15,
          greater=False),
)  # fmt: skip
GRID = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
SEEDS = 40
RATES = {"no hint": 300.0, "half": 300.0, "half, imitated": 1e4, "adaptive": 100.0, "adaptive, log-likelihood": 1e4}
"""What :func:`choose_rates` gives."""


class Strings:
    """Secrets of a seed, and the policy's logits."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.secrets = torch.randint(SYMBOLS, (PROBLEMS, LENGTH), generator=self.generator)
        self.logits = torch.zeros(PROBLEMS, LENGTH, SYMBOLS, dtype=torch.float64)

    def rollouts(self, shown: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Symbols ``[problems, count, length]`` after the first ``shown`` of each problem, and rewards."""
        p = self.logits.softmax(-1).reshape(-1, SYMBOLS)
        drawn = torch.multinomial(p, count, replacement=True, generator=self.generator)
        drawn = drawn.view(PROBLEMS, LENGTH, count).transpose(1, 2)
        hinted = torch.arange(LENGTH) < shown[:, None, None]
        symbols = torch.where(hinted, self.secrets[:, None], drawn)
        return symbols, (symbols == self.secrets[:, None]).all(-1).double()

    def learn(self, arm: str, symbols: Tensor, rewards: Tensor, shown: Tensor, last: Tensor, rate: float) -> None:
        """One step on all rollouts ``[problems, rollouts]``, whose first ``shown`` symbols were hints."""
        logits = self.logits.clone().requires_grad_()
        log_p = logits.log_softmax(-1)
        places = torch.arange(LENGTH)
        own = log_p[:, None].expand(*symbols.shape, SYMBOLS).gather(-1, symbols[..., None]).squeeze(-1)
        hint = log_p.gather(-1, self.secrets[..., None]).squeeze(-1)
        advantages = rewards - rewards.mean(1, keepdim=True)
        count = symbols.shape[1]
        loss = seele_loss(
            own.reshape(-1, LENGTH),
            advantages.reshape(-1),
            (places >= shown[..., None]).reshape(-1, LENGTH),
            hint.repeat_interleave(count, 0),
            (places < last[:, None]).repeat_interleave(count, 0),
            0.0 if arm == "half" else GAMMA,
            beta=BETA,
            imitation="probability" if arm == "adaptive" else "mean_log_likelihood",
            ref_logp=torch.full((PROBLEMS * count, LENGTH), -math.log(SYMBOLS), dtype=torch.float64),
        )
        (slope,) = torch.autograd.grad(loss, logits)
        self.logits = self.logits - PROBLEMS * rate * slope

    def success(self) -> Tensor:
        """Probabilities of the strings without a hint."""
        p = self.logits.log_softmax(-1).gather(-1, self.secrets[..., None]).squeeze(-1)
        return p.sum(1).exp()


def train(arm: str, rate: float, steps: int, seed: int) -> tuple[list[float], list[list[float]], float]:
    """Share of problems solved after each step, accuracies of each round, the probability of success at the start."""
    task, hints = Strings(seed), HintScheduler(rounds=ROUNDS)
    solved, accuracies = [], [[] for _ in range(ROUNDS)]  # type: tuple[list[float], list[list[float]]]
    first, steered = float(task.success().max()), arm.startswith("adaptive")
    for _ in range(steps):
        open_problems = (task.success() <= 0.5).numpy()
        batches = []
        for number in range(ROUNDS):
            shares = [hints.next(n, LENGTH) if steered else 0.5 * (arm != "no hint") for n in range(PROBLEMS)]
            shown = torch.tensor([min(round(share * LENGTH), LENGTH - 1) for share in shares])
            symbols, rewards = task.rollouts(shown, ROLLOUTS)
            means = rewards.mean(1).numpy()
            if steered:
                for n in range(PROBLEMS):
                    hints.update(n, int(shown[n]) / LENGTH, float(means[n]))
            accuracies[number] += means[open_problems].tolist()
            batches.append((symbols, rewards, shown[:, None].expand(-1, ROLLOUTS)))
        symbols, rewards, hinted = (torch.cat(parts, 1) for parts in zip(*batches))
        task.learn(arm, symbols, rewards, hinted, hinted[:, -1], rate)
        solved.append(float((task.success() > 0.5).double().mean()))
    return solved, accuracies, first


def run(scale: str, seed: int) -> Evidence:
    """Problems solved by arm, accuracies by round of the adaptive one."""
    full = scale == "full"
    steps = 60 if full else 2
    runs = {arm: train(arm, RATES[arm], steps, seed) for arm in ARMS}
    ends = {arm: solved[-1] for arm, (solved, _, _) in runs.items()}
    check_sane(
        "minus how far success without a hint begins from 4^-8", -abs(runs["no hint"][2] - SYMBOLS**-LENGTH), -1e-9
    )
    means = [float(np.mean(values)) for values in runs["adaptive"][1]]
    rows = [
        {"arm": arm, "step": number + 1, "solved": solved[number]}
        for arm, (solved, _, _) in runs.items()
        for number in range(0, steps, max(steps // 12, 1))
    ]
    rows += [{"arm": "adaptive, by round", "round": n + 1, "accuracy": mean} for n, mean in enumerate(means)]
    effects = {
        "no hint": ends["no hint"],
        "over none": ends["adaptive"] - ends["no hint"],
        "over half": ends["adaptive"] - ends["half"],
        "over imitated half": ends["adaptive"] - ends["half, imitated"],
        "third round": abs(means[2] - 0.5),
    }
    return Evidence(rows, effects)


def choose_rates() -> dict[str, float]:
    """The rate of each arm that solves most on the pilot seeds, over the steps; the middle one of equal ones."""
    order = sorted(GRID, key=lambda rate: abs(GRID.index(rate) - len(GRID) // 2))
    scores = {
        (arm, rate): float(np.mean([np.mean(train(arm, rate, 60, seed)[0]) for seed in PILOTS]))
        for arm in ARMS
        for rate in order
    }
    return {arm: max(order, key=lambda rate: scores[arm, rate]) for arm in ARMS}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Problems solved without a hint."""
    own = [Evidence([row for row in e.rows if "step" in row], {}) for e in evidence]
    return arms_figure(own, x="step", y="solved")
