"""Policy losses side by side: one small language model, sums as problems, rewards that can be checked.

The problems are all sums of two numbers below 20, in characters; two thirds of them, drawn by the seed, are trained on.
A transformer of one block (width 32) learns them from right answers for 150 steps and is then the reference and the
start of every loss. A step has 16 prompts with 8 answers each, drawn at temperature 1; an answer that is right to its
end is worth 1, any other 0; the same answers are learnt twice, so that ratios leave 1. 8 passes over the prompts are
136 steps of AdamW, gradients clipped at length 1, by the training loop of the package.

Each loss has its published settings: advantages in standard deviations of the group for GRPO, BNPO, DAPO, GSPO and
CISPO, plain for Dr. GRPO, Delta L, RPG and REC; bounds of .2, with .28 above for DAPO and CISPO, 3e-4 and 4e-4 for
GSPO; GRPO also with its divergence (beta .04). Each has the rate of one grid with the highest reward at the end on two
seeds that are not reported. The reward at the end is exact, the mean probability of the right answers; divergence from
the reference and entropy are a token's, sums over the vocabulary at the tokens of drawn answers. A group is dead where
all its answers are worth the same.

All claims are expectations of ours. The start is sane where its reward lies in .2 to .8, so that most groups can teach.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from ....core.policy_loss import PolicyLoss
from ....losses.language.token_cross_entropy import TokenCrossEntropyLoss
from ....losses.policy.delta_l_normalization import DeltaLNormalization
from ....losses.policy.group_policy import GroupPolicyLoss
from ....losses.policy.off_policy_reinforce import GroupREINFORCE
from ....losses.policy.regularized_policy_gradient import RPGLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...language import LanguageModel, Vocabulary, batches, by_loss, fresh, train
from ...rollouts import PolicyMethod, Problems, all_sums, chance_right, policy_descent, problems_of, spread_of
from ...settings import PILOTS, best_setting, check_sane

LONGEST = 3
"""Tokens of the longest right answer, its end included."""
LOSSES: dict[str, tuple[Callable[[], PolicyLoss], str]] = {
    "GRPO": (lambda: GroupPolicyLoss("grpo"), "group"),
    "GRPO, beta .04": (lambda: GroupPolicyLoss("grpo", beta=0.04), "group"),
    "BNPO": (lambda: GroupPolicyLoss("bnpo"), "group"),
    "DAPO": (lambda: GroupPolicyLoss("dapo"), "group"),
    "Dr. GRPO": (lambda: GroupPolicyLoss("dr_grpo", length=float(LONGEST)), "none"),
    "GSPO": (lambda: GroupPolicyLoss("gspo", epsilon=3e-4, epsilon_high=4e-4), "group"),
    "CISPO": (lambda: GroupPolicyLoss("cispo"), "group"),
    "Delta L": (lambda: DeltaLNormalization(max_length=float(LONGEST)), "none"),
    "RPG": (RPGLoss, "none"),
    "REC": (lambda: GroupREINFORCE("one-side"), "none"),
}
CLAIMS = (
    Claim("least gain", "every loss raises the mean reward: the least gain over the start is above .02", size=0.03,
          threshold=0.02, ours=True),
    Claim("range", "in reward the losses lie within .15 of each other", size=0.1, threshold=0.15, greater=False,
          ours=True),
    Claim("beta", "with its divergence GRPO ends nearer to the reference than without, by .01 nats a token", size=0.02,
          threshold=0.01, ours=True),
)  # fmt: skip
GRID = (3e-4, 1e-3, 3e-3)
RATES = dict.fromkeys(LOSSES, 3e-4)
"""What :func:`choose_rates` gives: for all the lowest of the grid."""


class Scale(NamedTuple):
    """How large a run is."""

    below: int
    width: int
    warm_steps: int
    passes: int
    prompts: int
    smoke: bool


FULL, SMOKE = Scale(20, 32, 150, 8, 16, False), Scale(4, 8, 60, 2, 8, True)


class Start(NamedTuple):
    """What all losses of a seed begin with."""

    model: LanguageModel
    trained: Problems
    held_out: Problems


def start(scale: Scale, seed: int) -> Start:
    """Problems, and a model that has learned some of them from right answers."""
    words, pairs = Vocabulary("0123456789+="), all_sums(scale.below)
    order = np.random.default_rng(seed).permutation(len(pairs))
    cut = 2 * len(pairs) // 3
    own, others = ([pairs[place] for place in places] for places in (order[:cut], order[cut:]))
    trained, held_out = (problems_of(words, rows) for rows in (own, others))
    model = fresh(seed, len(words), trained.context, width=scale.width, depth=1, heads=2, smoke=scale.smoke)
    rows = batches(*words.rows(own), 64, torch.Generator().manual_seed(seed))
    step = by_loss(TokenCrossEntropyLoss())
    train(model, rows, step, rate=3e-3, steps=scale.warm_steps, decay=False)
    return Start(model, trained, held_out)


def learn(begin: Start, name: str, rate: float, scale: Scale, seed: int) -> dict[str, float]:
    """A row of the table: what a loss makes of the start."""
    model, (loss, scale_rewards) = copy.deepcopy(begin.model), LOSSES[name]
    run = policy_descent(
        model,
        loss(),
        begin.trained,
        rate=rate,
        prompts=scale.prompts,
        seed=seed,
        updates=2,
        scale_rewards=scale_rewards,
    )
    began = time.process_time()
    run.fit(scale.passes)
    seconds = time.process_time() - began
    assert isinstance(run.method, PolicyMethod)
    return {
        **facts(model, begin, seed),
        "dead": float(np.mean([line["dead"] for line in run.method.history])),
        "seconds": seconds,
    }


def facts(model: LanguageModel, begin: Start, seed: int) -> dict[str, float]:
    """Rewards, divergence, entropy and length."""
    spread = spread_of(model, begin.model, begin.trained, generator=torch.Generator().manual_seed(seed))
    return {
        "reward": chance_right(model, begin.trained),
        "held out": chance_right(model, begin.held_out),
        "divergence": spread.divergence,
        "entropy": spread.entropy,
        "length": spread.length,
    }


def run(scale: str, seed: int) -> Evidence:
    """The table of one seed."""
    size = FULL if scale == "full" else SMOKE
    begin = start(size, seed)
    before = facts(begin.model, begin, seed)
    if scale == "full":
        check_sane("reward of the start", before["reward"], 0.2)
        check_sane("minus reward of the start", -before["reward"], -0.8)
    table = {name: learn(begin, name, RATES[name], size, seed) for name in LOSSES}
    rows = [{"loss": "start", **before}, *({"loss": name, **own} for name, own in table.items())]
    rewards = [own["reward"] for own in table.values()]
    effects = {
        "least gain": min(rewards) - before["reward"],
        "range": max(rewards) - min(rewards),
        "beta": table["GRPO"]["divergence"] - table["GRPO, beta .04"]["divergence"],
    }
    return Evidence(rows, effects)


def choose_rates() -> dict[str, float]:
    """The rate of each loss with the highest reward at the end on pilot seeds."""
    seeds = PILOTS[:2]
    begins = {seed: start(FULL, seed) for seed in seeds}

    def rate_of(name: str) -> float:
        return best_setting(GRID, lambda rate, seed: learn(begins[seed], name, rate, FULL, seed)["reward"], seeds)

    return {name: rate_of(name) for name in LOSSES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Rewards at the end."""
    return bars_figure(evidence, y="reward", label="loss")
