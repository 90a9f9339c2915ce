"""Delta L normalisation: less variance of the averaged gradient at the same mean, and a policy that learns no slower.

Simulation: 16 lengths uniform in 10..2000, sums of token losses g_i = 1 + N(0, L_i), 100000 groups; the standard
deviation of sum x_i g_i at M = 1 is 7.94, 4.53 and 4.29 for alpha = 0, .75 and 1 (each within .1), the means are equal
(within .1 of 1), and the token mean has the coefficient of variation of alpha = 0 (its logarithm within .05). The
numbers belong to one draw of the lengths, that of numpy's generator of seed 0, whose exact deviations are 7.96, 4.53
and 4.28; over draws of the lengths their root mean squares are 7.93, 5.71 and 5.53.

A tiny policy: 8 prompts, 6 symbols, logits of each prompt from which all tokens of its answers are drawn. The length is
drawn for each answer, log-uniform in 2..64, and the reward is 1 if the last token is the prompt's own symbol; all
tokens are reinforced with the reward less its group's mean, 4 prompts of 8 answers a step, 250 steps of plain gradient
descent on the same seeds for all arms. So the wanted direction is common to all lengths and the noise grows with the
length, as the model of the publication says. Arms: alpha = 0 (Dr. GRPO, the baseline), .75, 1 (the official settings),
the mean of means (GRPO), the token mean (DAPO); each has the rate of one grid with the highest mean reward over
training on three seeds that are not reported (the largest of the grid for all but the baseline, whose 8 is inside it).
The reward is exact: the mean probability of the right symbols. The baseline must reach a final reward of at least .5.

"Lower variance" is taken as: at the same policies (six moments of the baseline's training, 250 batches each) the
variance of the gradient over its squared mean (sums over the moments), of alpha = .75 and of 1, is below 2/3 of that of
alpha = 0. "At least as fast" as: the mean reward over training of alpha = .75, and of 1, is not more than .01 below
that of alpha = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.policy.delta_l_normalization import aggregate_policy_loss, delta_l_weights
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import PILOTS, best_setting, check_sane

PROMPTS, SYMBOLS, ANSWERS, LONGEST = 8, 6, 8, 64
ARMS = ("alpha 0", "alpha 0.75", "alpha 1", "mean of means", "token mean")
DEVIATIONS = {0.0: 7.94, 0.75: 4.53, 1.0: 4.29}
CLAIMS = (
    *(
        Claim(f"deviation {alpha:g}", f"the simulated standard deviation at alpha = {alpha:g} is {wanted}",
              size=0.1, threshold=0.1, greater=False)
        for alpha, wanted in DEVIATIONS.items()
    ),
    Claim("means", "the simulated means are equal: the furthest from 1 is within .1", size=0.1, threshold=0.1,
          greater=False),
    Claim("token mean", "the token mean has the coefficient of variation of alpha = 0: log ratio within .05", size=0.05,
          threshold=0.05, greater=False),
    Claim("policy variance 0.75", "a policy's gradient at alpha = .75 has a relative variance below 2/3 of alpha = 0's",
          size=0.1, threshold=2 / 3, greater=False),
    Claim("policy variance 1", "and at alpha = 1 too", size=0.1, threshold=2 / 3, greater=False),
    Claim("reward 0.75", "its mean reward over training at alpha = .75 is at least that at alpha = 0, less .01",
          size=0.01, threshold=-0.01),
    Claim("reward 1", "and at alpha = 1 too", size=0.01, threshold=-0.01),
)  # fmt: skip
SANITY = 0.5
GRID = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
RATES = {"alpha 0": 8.0, "alpha 0.75": 16.0, "alpha 1": 16.0, "mean of means": 16.0, "token mean": 16.0}
"""What :func:`choose_rates` gives, in units of each arm's mean weight (see :func:`scale_of`)."""
SEEDS = 6


def simulate(groups: int, seed: int) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each estimate."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.as_tensor(np.random.default_rng(0).integers(10, 2000, 16)).double().expand(groups, 16)
    sums = 1 + lengths.sqrt() * torch.randn(groups, 16, generator=generator, dtype=torch.float64)
    weights = {f"alpha {a:g}": torch.vmap(partial(delta_l_weights, alpha=a))(lengths) for a in DEVIATIONS}
    weights["token mean"] = (1 / lengths.sum(1, keepdim=True)).expand_as(lengths)
    estimates = {name: (x * sums).sum(1) for name, x in weights.items()}
    return {name: (float(e.mean()), float(e.std())) for name, e in estimates.items()}


class Task:
    """Right symbols of the prompts, and drawn answers."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.right = torch.randint(SYMBOLS, (PROMPTS,), generator=self.generator)

    def batch(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States and symbols ``[B, T]``, mask and advantages of 4 prompts of 8 answers."""
        prompts = torch.randperm(PROMPTS, generator=self.generator)[:4].repeat_interleave(ANSWERS)
        drawn = torch.rand(len(prompts), generator=self.generator)
        lengths = (2 * (LONGEST / 2) ** drawn).round().long()
        steps = torch.arange(LONGEST)
        mask, last = steps < lengths[:, None], steps == lengths[:, None] - 1
        states = prompts[:, None].expand(mask.shape)
        symbols = torch.multinomial(
            logits.softmax(1)[states.flatten()], 1, generator=self.generator
        ).view(states.shape)  # fmt: skip
        rewards = ((symbols == self.right[prompts][:, None]) & last).any(1).double()
        groups = rewards.view(4, ANSWERS)
        return states, symbols, mask, (groups - groups.mean(1, keepdim=True)).flatten()

    def reward(self, logits: Tensor) -> float:
        """Exact."""
        return float(logits.softmax(1)[torch.arange(PROMPTS), self.right].mean())


def scale_of(arm: str) -> float:
    """What puts the rates of all arms on one grid: the longest length where the weights hold it, a usual one else."""
    return 17.9 if arm == "token mean" else 10.0 if arm == "mean of means" else float(LONGEST)


def loss_of(arm: str, logits: Tensor, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """REINFORCE, averaged as the arm does."""
    states, symbols, mask, advantages = batch
    losses = -logits.log_softmax(1)[states, symbols] * advantages[:, None]
    if arm in ("mean of means", "token mean"):
        return aggregate_policy_loss(losses, mask, "grpo" if arm == "mean of means" else "dapo")
    if arm == "alpha 0":
        return aggregate_policy_loss(losses, mask, "dr_grpo", max_length=LONGEST)
    return aggregate_policy_loss(losses, mask, "delta_l", float(arm.split()[1]), LONGEST)


def train(arm: str, rate: float, steps: int, seed: int) -> tuple[list[Tensor], list[float]]:
    """Logits before each step and rewards after it."""
    task = Task(seed)
    history, rewards = [torch.zeros(PROMPTS, SYMBOLS, dtype=torch.float64)], []
    for _ in range(steps):
        logits = history[-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(arm, logits, task.batch(history[-1])), logits)
        history.append(history[-1] - rate * scale_of(arm) * slope)
        rewards.append(task.reward(history[-1]))
    return history, rewards


def relative_variances(history: Sequence[Tensor], batches: int, seed: int) -> dict[str, float]:
    """Of each arm the variance of the gradient over its squared mean, both summed over six moments."""
    task = Task(seed)
    noise, signal = dict.fromkeys(ARMS, 0.0), dict.fromkeys(ARMS, 0.0)
    for moment in range(6):
        logits = history[moment * (len(history) - 1) // 6].clone().requires_grad_()
        drawn = [task.batch(logits.detach()) for _ in range(batches)]
        for arm in ARMS:
            slopes = torch.stack([torch.autograd.grad(loss_of(arm, logits, b), logits)[0].flatten() for b in drawn])
            variance = float(slopes.var(0).sum())
            noise[arm] += variance
            signal[arm] += float(slopes.mean(0).square().sum()) - variance / batches  # less the mean's own noise
    return {arm: noise[arm] / max(signal[arm], 1e-3 * noise[arm]) for arm in ARMS}


def run(scale: str, seed: int) -> Evidence:
    """The simulation, the variance of a policy's gradient, its reward."""
    full = scale == "full"
    numbers = simulate(100_000 if full else 500, seed)
    steps = 250 if full else 12
    runs = {arm: train(arm, RATES[arm], steps, seed) for arm in ARMS}
    speed = {arm: sum(rewards) / steps for arm, (_, rewards) in runs.items()}
    ends = {arm: rewards[-1] for arm, (_, rewards) in runs.items()}
    if full:
        check_sane("final reward of alpha = 0", ends["alpha 0"], SANITY)
    spread = relative_variances(runs["alpha 0"][0], 250 if full else 8, seed)
    rows = [
        {
            "arm": arm,
            "step": number + 1,
            "reward": rewards[number],
            "mean reward": speed[arm],
            "relative variance": spread[arm],
        }
        for arm, (_, rewards) in runs.items()
        for number in range(0, steps, max(steps // 10, 1))
    ]
    rows += [{"arm": f"simulated {name}", "mean": mean, "deviation": std} for name, (mean, std) in numbers.items()]
    variation = {name: std / mean for name, (mean, std) in numbers.items()}
    effects = {
        **{f"deviation {a:g}": abs(numbers[f"alpha {a:g}"][1] - wanted) for a, wanted in DEVIATIONS.items()},
        "means": max(abs(numbers[f"alpha {a:g}"][0] - 1) for a in DEVIATIONS),
        "token mean": abs(math.log(abs(variation["token mean"] / variation["alpha 0"]))),
        **{f"policy variance {a}": spread[f"alpha {a}"] / spread["alpha 0"] for a in ("0.75", "1")},
        **{f"reward {a}": speed[f"alpha {a}"] - speed["alpha 0"] for a in ("0.75", "1")},
    }
    return Evidence(rows, effects)


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the highest mean reward over training on the pilot seeds."""

    def score(arm: str, rate: float, seed: int) -> float:
        rewards = train(arm, rate, 250, seed)[1]
        return sum(rewards) / len(rewards)

    return {arm: best_setting(GRID, partial(score, arm), PILOTS) for arm in ARMS}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The reward of the policy."""
    own = [Evidence([row for row in e.rows if "step" in row], {}) for e in evidence]
    return arms_figure(own, x="step", y="reward")
