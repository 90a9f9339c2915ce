"""Off-policy REINFORCE on a bandit: it settles on the wrong arm, and regularisers towards the data repair it.

Three arms with rewards 0, .8 and 1, data in the proportions .3, .65 and .05 that some other policy left, a softmax
policy over three logits, gradient descent at 5 with the exact expectation over the data: a group of 100 answers in
these proportions, whose log-probability under the data's policy is the logarithm of the share, 600 steps. A seed draws
the logits of the start, normal with deviation .3; 20 of them.

Plain REINFORCE converges to the second arm (taken as more than .99 of the probability; value .8). The pairwise loss
with tau = .2 ends within .001 of the exact optimum, which is proportional to share exp(reward / tau): (.0069, .8213,
.1717), of value .829. OPMD with tau = .2 raises the third arm to .11 (within .005). Asymmetric REINFORCE with b = .1
does not save this bandit: its value stays below .81. The rate plays no part in where these deterministic losses end, so
all arms share one; the baseline is sane when its value is that of the second arm within .01.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.policy.off_policy_reinforce import asymre_loss, opmd_loss, pairwise_consistency_loss, rec_loss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

REWARDS, SHARES, TAU, SHIFT = (0.0, 0.8, 1.0), (0.3, 0.65, 0.05), 0.2, 0.1
OPTIMUM = (0.0069, 0.8213, 0.1717)
SEEDS = 20
CLAIMS = (
    Claim("second arm", "REINFORCE converges to the second arm: its probability is above .99", size=0.009,
          threshold=0.99),
    Claim("distance", "the pairwise loss (tau = .2) ends within .001 of the exact optimum", size=0.001, threshold=0.001,
          greater=False),
    Claim("value", "whose value is .829 (within .001)", size=0.001, threshold=0.001, greater=False),
    Claim("third arm", "OPMD raises the third arm to .11 (within .005)", size=0.005, threshold=0.005, greater=False),
    Claim("asymmetric", "asymmetric REINFORCE with b = .1 does not save this bandit: its value is below .81", size=0.01,
          threshold=0.81, greater=False),
)  # fmt: skip


def descend(loss: Callable[..., Tensor], start: Tensor, steps: int, rate: float) -> Tensor:
    """Probabilities at the end; the 100 answers of the group are in the proportions of the data."""
    arms = torch.arange(3).repeat_interleave(torch.tensor([round(100 * share) for share in SHARES]))
    old = torch.tensor(SHARES, dtype=torch.float64).log()[arms, None]
    rewards, mask = torch.tensor(REWARDS, dtype=torch.float64)[arms], torch.ones(100, 1, dtype=torch.bool)
    logits = start
    for _ in range(steps):
        leaf = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf.log_softmax(0)[arms, None], old, rewards, mask), leaf)
        logits = logits - rate * slope
    return logits.softmax(0)


def run(scale: str, seed: int) -> Evidence:
    """Where each loss ends."""
    full = scale == "full"
    start = 0.3 * torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    losses = {
        "REINFORCE": partial(rec_loss, clip="none"),
        "pairwise": partial(pairwise_consistency_loss, tau=TAU),
        "OPMD": partial(opmd_loss, tau=TAU),
        "asymmetric": partial(asymre_loss, b=SHIFT),
    }
    ends = {name: descend(loss, start, 600 if full else 30, 5.0).tolist() for name, loss in losses.items()}
    values = {name: math.fsum(p * r for p, r in zip(end, REWARDS)) for name, end in ends.items()}
    if full:
        check_sane("minus what REINFORCE's value is off that of the second arm", -abs(values["REINFORCE"] - 0.8), -0.01)
    rows = [
        {"loss": name, "value": values[name], **{f"arm {k + 1}": p for k, p in enumerate(end)}}
        for name, end in ends.items()
    ]
    effects = {
        "second arm": ends["REINFORCE"][1],
        "distance": max(abs(p - q) for p, q in zip(ends["pairwise"], OPTIMUM)),
        "value": abs(values["pairwise"] - 0.829),
        "third arm": abs(ends["OPMD"][2] - 0.11),
        "asymmetric": values["asymmetric"],
    }
    return Evidence(rows, effects)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Values at the end."""
    return bars_figure(evidence, y="value", label="loss")
