"""DiscoPOP: the reward at a given divergence from the reference, against DPO; and the search that found it.

Set-up of the claim: 200 answers with 20 normal features and a reward linear in them (variance 1), a uniform reference,
a policy whose logits are linear in the features, 500 pairs of answers of which 20% have the wrong label. The policy
takes 120 steps of SGD on batches of 50 pairs. Each arm is read where it first is KL = 0.5 nats away from the
reference, or at its end where it never is: the expected reward less that of the reference. "At least DPO's within
noise" is taken as not more than 5% below DPO's. Arms: DPO, SLiC (the hinge), the exponential loss, DiscoPOP with its
published beta = tau = 0.05, and DiscoPOP with tau = 0.05 and a beta chosen as that of the others.
Each seed has eight such problems, and the means over them count.

The search: ``discover_objective`` with random expressions for 30 generations, from the named losses; the score is the
reward at KL = 0.5 as a share of the best possible, the mean of four problems, at the best of three rates after 60
steps. "Improves" is taken as more than the best loss it started from. What it found must also be not more than 1% below
that loss on eight fresh problems (an expectation of ours).

The baseline is fair: every arm has the beta of 0.05, 0.2, 1 and the rate with the highest mean reward on six problems
that are not reported (:func:`choose_settings`), and DPO must reach 80% of the reward that a policy that knows the true
one has at that divergence.

At the start all margins are 0, between the loss's maximum (x = 0.072) and its minimum (x = -0.119): its slope there is
-3/4 + (1 - ln 2) / (4 tau), positive for tau < 0.102, so that gradient descent lowers the margins of all pairs. A claim
of ours measures it: with a small rate the mean margin after the first epoch is negative. TRL's loss of this name has
the same slope, and so has the publication's equation; what differs from the publication is that nothing here but the
loss itself moves margins out of that interval. A beta of 1 narrows it to margins in [-0.12, 0.07], which steps leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.policy.discopop import discover_objective, preference_losses
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import UNREPORTED, check_sane

PROBLEMS, ANSWERS, FEATURES, PAIRS, FLIPPED = 8, 200, 20, 500, 0.2
BATCH, STEPS, SEARCH_STEPS, GENERATIONS = 50, 120, 60, 30
DIVERGENCES = (0.1, 0.25, 0.5, 1.0)
AT = 0.5
DPO, PUBLISHED, TUNED = "DPO", "DiscoPOP, published", "DiscoPOP, beta chosen"
LOSSES = {DPO: "sigmoid", "SLiC": "hinge", "exponential": "exponential", PUBLISHED: "discopop", TUNED: "discopop"}
BETAS = (0.05, 0.2, 1.0)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Rates in x = beta rho: the rate of SGD is this over beta."""
SETTINGS: dict[str, tuple[float, float]] = {
    DPO: (0.2, 0.1),
    "SLiC": (1.0, 0.3),
    "exponential": (0.2, 0.03),
    PUBLISHED: (0.05, 3.0),
    TUNED: (1.0, 0.3),
}
"""Beta and rate of each arm: what :func:`choose_settings` gives."""
SEARCHED_RATES = (0.1, 0.3, 1.0)
CLAIMS = (
    Claim(
        "published over DPO",
        "at KL = 0.5 the reward of DiscoPOP with beta = tau = 0.05 is not more than 5% below DPO's",
        size=5.0,
        threshold=-5.0,
    ),
    Claim(
        "tuned over DPO",
        "at KL = 0.5 the reward of DiscoPOP with a beta chosen as DPO's is not more than 5% below DPO's",
        size=5.0,
        threshold=-5.0,
    ),
    Claim(
        "search gain",
        "30 generations of random expressions raise the best validation score",
        size=1.0,
    ),
    Claim(
        "search gain, fresh",
        "on fresh problems what they found is not more than 1% below the best loss they started from",
        size=1.0,
        threshold=-1.0,
        ours=True,
    ),
    Claim(
        "first margin",
        "with beta = tau = 0.05 and a small rate the mean margin after the first epoch is negative",
        size=0.01,
        greater=False,
        ours=True,
    ),
)
SANITY = 80.0
SEEDS = 6
Margins = Callable[[Tensor], Tensor]


class Problems(NamedTuple):
    """Several problems at once: features of answers ``[P, A, d]``, centred rewards ``[P, A]``, differences of features
    of the pairs, chosen less rejected ``[P, N, d]``, the best possible reward at KL = 0.5 ``[P]``."""

    features: Tensor
    rewards: Tensor
    pairs: Tensor
    best: Tensor


def problems(seeds: Sequence[int]) -> Problems:
    """Problems of seeds."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(ANSWERS, FEATURES, generator=generator, dtype=torch.float64)
        rewards = features @ torch.randn(FEATURES, generator=generator, dtype=torch.float64) / math.sqrt(FEATURES)
        rewards = (rewards - rewards.mean()) / rewards.std()
        first = torch.randint(ANSWERS, (PAIRS,), generator=generator)
        second = (first + torch.randint(1, ANSWERS, (PAIRS,), generator=generator)) % ANSWERS
        better = rewards[first] > rewards[second]
        right = torch.rand(PAIRS, generator=generator) >= FLIPPED
        sign = torch.where(better == right, 1.0, -1.0).double()
        drawn.append((features, rewards, sign[:, None] * (features[first] - features[second])))
    features, rewards, pairs = map(torch.stack, zip(*drawn))
    tilts = torch.linspace(0.0, 3.0, 600, dtype=torch.float64)[:, None, None]
    best = at_divergence(*divergence_and_reward(tilts * rewards, rewards), AT)
    return Problems(features, rewards, pairs, best)


def divergence_and_reward(logits: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """KL from the uniform reference, and expected reward, of policies ``[..., A]``."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    return (p * log_p).sum(-1) + math.log(logits.shape[-1]), (p * rewards).sum(-1)


def at_divergence(divergence: Tensor, reward: Tensor, at: float) -> Tensor:
    """The reward where paths ``[T, ...]`` first reach a divergence, by linear interpolation; at the end of others."""
    reached = divergence >= at
    place = torch.where(reached.any(0), reached.double().argmax(0), len(reward) - 1)
    before = (place - 1).clamp(min=0)

    def pick(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(0, index[None])[0]

    low, high = pick(divergence, before), pick(divergence, place)
    share = torch.where(high > low, ((at - low) / (high - low)).clamp(0.0, 1.0), 1.0)
    share = torch.where(reached.any(0), share, 1.0)
    return pick(reward, before) + share * (pick(reward, place) - pick(reward, before))


def train(losses: Margins, given: Problems, rates: Sequence[float], beta: float, steps: int, seed: int) -> Tensor:
    """Weights after each step ``[T + 1, P, L, d]``, of losses of margins; all problems and rates at once."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.tensor(rates, dtype=torch.float64)[:, None] / beta
    weights = torch.zeros(len(given.pairs), len(rates), FEATURES, dtype=torch.float64)
    path = [weights]
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(PAIRS, generator=generator)
        batch, order = given.pairs[:, order[:BATCH]], order[BATCH:]
        weights = weights.detach().requires_grad_()
        margins = weights @ batch.mT
        (slope,) = torch.autograd.grad(losses(margins.flatten()).sum() / BATCH, weights)
        weights = weights.detach() - rate * slope.nan_to_num(0.0, 0.0, 0.0)
        path.append(weights)
    return torch.stack(path)


def rewards_at(path: Tensor, given: Problems, divergences: Sequence[float]) -> Tensor:
    """The rewards of paths where they reach divergences ``[K, P, L]``."""
    logits = path @ given.features.mT
    divergence, reward = divergence_and_reward(logits, given.rewards[:, None])
    return torch.stack([at_divergence(divergence, reward, at) for at in divergences])


def of_arm(arm: str, beta: float) -> Margins:
    """The losses of an arm at a beta."""
    return lambda rho: preference_losses[LOSSES[arm]](rho, beta)


def run(scale: str, seed: int) -> Evidence:
    """The reward of each arm at several divergences, and a search."""
    full = scale == "full"
    steps = STEPS if full else 30
    given = problems([PROBLEMS * seed + n for n in range(PROBLEMS)])
    best = float(given.best.mean())
    rows: list[dict[str, str | float]] = []
    reward = {}
    for arm, (beta, rate) in SETTINGS.items():
        path = train(of_arm(arm, beta), given, (rate,), beta, steps, seed)
        for at, value in zip(DIVERGENCES, rewards_at(path, given, DIVERGENCES).mean((1, 2)).tolist()):
            rows.append({"arm": arm, "divergence": at, "reward": value, "beta": beta, "rate": rate})
            if at == AT:
                reward[arm] = value
    if full:
        check_sane("reward of DPO, % of the best possible", 100 * reward[DPO] / best, SANITY)
    small = train(of_arm(PUBLISHED, 0.05), given, RATES[:1], 0.05, PAIRS // BATCH, seed)[-1]
    search, fresh = _search(seed, SEARCH_STEPS if full else 10, GENERATIONS if full else 3)
    rows += [{"arm": "search", "generation": n, "score": score} for n, score in enumerate(search)]
    effects = {
        "published over DPO": 100 * (reward[PUBLISHED] - reward[DPO]) / reward[DPO],
        "tuned over DPO": 100 * (reward[TUNED] - reward[DPO]) / reward[DPO],
        "search gain": 100 * (search[-1] - search[0]) / search[0],
        "search gain, fresh": 100 * (fresh[1] - fresh[0]) / fresh[0],
        "first margin": float((small @ given.pairs.mT).mean()),
    }
    return Evidence(rows, effects)


def _search(seed: int, steps: int, generations: int) -> tuple[list[float], tuple[float, float]]:
    """The best score after each generation, and on fresh problems those of the best at the start and at the end."""

    def shares(losses: Margins, given: Problems) -> Tensor:
        path = train(losses, given, SEARCHED_RATES, 1.0, steps, seed)
        return (rewards_at(path, given, (AT,))[0] / given.best[:, None]).mean(0)

    validation = problems([UNREPORTED + 20 * seed + n for n in range(4)])
    search = discover_objective(
        lambda losses: float(shares(losses, validation).max()), generations=generations, seed=seed
    )
    fresh = problems([UNREPORTED + 20 * seed + n for n in range(4, 12)])
    known = max(search.archive[: search.started_from], key=lambda candidate: candidate.score)
    scores = []
    for candidate in (known, search.best):
        rate = int(shares(candidate.losses, validation).argmax())
        scores.append(float(shares(candidate.losses, fresh)[rate]))
    return search.best_so_far, (scores[0], scores[1])


def choose_settings() -> dict[str, tuple[float, float]]:
    """Beta and rate of each arm with the highest mean reward at KL = 0.5 on six problems that are not reported."""
    pilots = problems([UNREPORTED + 5000 + n for n in range(6)])
    chosen = {}
    for arm in LOSSES:
        scores: dict[tuple[float, float], float] = {}
        for beta in (0.05,) if arm == PUBLISHED else BETAS:
            path = train(of_arm(arm, beta), pilots, RATES, beta, STEPS, UNREPORTED)
            means = rewards_at(path, pilots, (AT,))[0].mean(0)
            scores |= {(beta, rate): float(mean) for rate, mean in zip(RATES, means)}
        chosen[arm] = max(scores, key=scores.__getitem__)
    return chosen


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Reward over the divergence from the reference."""
    own = [Evidence([row for row in e.rows if "divergence" in row], e.effects) for e in evidence]
    drawn = arms_figure(own, x="divergence", y="reward")
    drawn.axes[0].set_xlabel("divergence from the reference, nats")
    drawn.axes[0].set_ylabel("expected reward")
    return drawn
