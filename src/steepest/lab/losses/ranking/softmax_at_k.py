"""The softmax loss at K beside the softmax loss and BPR.

Set-up of the claim: generated feedback of 800 users on 600 items, a preference of rank 8 and a popularity as 1 /
rank, 20 positives a user split 80 to 20; a factorisation of width 16 scored by cosines, 100 negatives for each
positive, 30 epochs, thresholds renewed after every fifth epoch. NDCG@5 of test positives among all other items. The
publication gains about 6% over the better of the softmax loss and BPR on four public sets; a trial of ours gave a tie
at a temperature of the weight of 1, and far worse values at .3. That temperature is chosen from .5, 1 and 2 here,
with the rate; beside it stand the default of the published code, 1, and the form whose weight carries no gradient.

The temperature of scores is .2 of cosines for all. Every loss has the best of four rates (that at K with the best
temperature of the weight) by NDCG@5 on two seeds that are not reported (:func:`choose_settings`). The softmax loss,
the baseline, must reach .3; random items give .01.

What was found is below the softmax loss by 3%, in every seed. What was checked: values and gradients are those of the
published formula and code; thresholds are renewed as there; without the gradient through the weight, which pushes
positives down wherever the logarithm is positive, it is nearly on a level with the softmax loss (.380 and .383), and at
the temperature 1 of the weight it is far below (.255).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.ranking.softmax_at_k import SoftmaxLossAtK
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...recommendation import Factors, Feedback, bpr, fitted, softmax
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 6
AT_K, OFFICIAL, DETACHED, SOFTMAX, BPR = (
    "softmax at 5",
    "softmax at 5, default",
    "softmax at 5, detached",
    "softmax",
    "BPR",
)
TAU, K, EVERY = 0.2, 5, 5
GRID = (0.05, 0.1, 0.2, 0.4)
TAU_BETAS = (0.5, 1.0, 2.0)
SETTINGS = {AT_K: (2.0, 0.1), OFFICIAL: (1.0, 0.4), DETACHED: (2.0, 0.1), SOFTMAX: (1.0, 0.1), BPR: (1.0, 0.4)}
"""Temperature of the weight (where there is one) and rate of each loss: what :func:`choose_settings` gives."""
SANITY = 0.3
"""NDCG@5 that the softmax loss must reach."""
CLAIMS = (
    Claim("over softmax", "NDCG@5 is above that of the softmax loss (6% of it)", size=0.06),
    Claim("over BPR", "NDCG@5 is above that of BPR (6% of it)", size=0.06),
)


def run(scale: str, seed: int) -> Evidence:
    """NDCG@5 of each loss."""
    rows: list[dict[str, Any]] = [
        {"arm": arm, "NDCG@5": measure(arm, setting, scale, seed)} for arm, setting in SETTINGS.items()
    ]
    by_arm = {row["arm"]: row["NDCG@5"] for row in rows}
    if scale == "full":
        check_sane("NDCG@5 of the softmax loss", by_arm[SOFTMAX], SANITY)
    gains = {"over softmax": SOFTMAX, "over BPR": BPR}
    return Evidence(rows, {name: by_arm[AT_K] / max(by_arm[arm], 1e-3) - 1 for name, arm in gains.items()})


def measure(arm: str, setting: tuple[float, float], scale: str, seed: int) -> float:
    """NDCG@5 of factors that were trained by one loss."""
    tau_beta, rate = setting
    if arm == BPR:
        return fitted(bpr, scale, seed, lr=rate)
    if arm == SOFTMAX:
        return fitted(lambda pos, neg, users: softmax(pos, neg, TAU), scale, seed, lr=rate)
    full = scale == "full"
    loss = SoftmaxLossAtK(800 if full else 60, K, TAU, tau_beta, detach_weight=arm == DETACHED)
    source = torch.Generator().manual_seed(seed + 2)

    def renew(epoch: int, model: Factors, data: Feedback) -> None:
        loss.start_epoch(epoch, 30)
        if epoch % EVERY == 0:
            _renew(loss, model, data, source)

    return fitted(lambda pos, neg, users: loss(pos, neg, users), scale, seed, lr=rate, on_epoch=renew)


@torch.no_grad()
def _renew(loss: SoftmaxLossAtK, model: Factors, data: Feedback, source: torch.Generator) -> None:
    """Thresholds of all users from their training positives and a hundred items that are none."""
    users = torch.arange(len(data.train))
    scores = model(users)
    free = torch.ones(scores.shape).scatter_(1, data.train, 0.0)
    drawn = torch.multinomial(free, min(100, data.items - data.train.shape[1]), generator=source)
    pos: Tensor = scores.gather(1, data.train)
    loss.update_quantile(users, pos, torch.ones_like(pos, dtype=torch.bool), scores.gather(1, drawn))


def choose_settings() -> dict[str, tuple[float, float]]:
    """The setting of each loss with the best mean NDCG@5 over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    temperatures = {AT_K: TAU_BETAS, DETACHED: TAU_BETAS}
    return {
        arm: best_setting(
            [(tau_beta, rate) for tau_beta in temperatures.get(arm, (1.0,)) for rate in GRID],
            lambda setting, seed, arm=arm: measure(arm, setting, "full", seed),
            pilots,
        )
        for arm in SETTINGS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """NDCG@5 by loss."""
    return bars_figure(evidence, y="NDCG@5")
