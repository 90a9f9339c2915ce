"""The pairwise softmax loss beside the softmax loss, as test positives come among the negatives.

Set-up of the claim: generated feedback of 800 users on 600 items, a preference of rank 8 and a popularity as 1 /
rank, 20 positives a user split 80 to 20; a factorisation of width 16 scored by cosines, 100 negatives for each
positive, 30 epochs. Of a user's test positives a share of 0, 10 or 30% is added to the negatives of all its
positives. NDCG@5 of test positives among all other items. The publication has better NDCG than the softmax loss on
four data sets and a slower decay as false negatives are injected; a trial of ours was near equal without any, and
.1224 against .1211 (1%) at 30%. 1% is taken as the size of all three claims.

Each loss has the best of three temperatures with the best of three rates by NDCG@5 without false negatives on two
seeds that are not reported (:func:`choose_settings`); differences of the pairwise loss are halved, and so are its
temperatures. The softmax loss, the baseline, must reach .3 without false negatives.

What was found without false negatives is half a per cent below the softmax loss, at the lowest of its temperatures for
each. What was checked: values of all activations are those of naive sums and of the published formula, and the
temperatures were chosen alike. There are 28 seeds, because a first record of six could only have found 2% with false
negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ....losses.ranking.pairwise_softmax import pairwise_softmax_loss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...recommendation import Loss, fitted, softmax
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 28
PAIRWISE, SOFTMAX = "pairwise softmax, tanh", "softmax"
SHARES = (0.0, 0.1, 0.3)
TAUS = {PAIRWISE: (0.05, 0.1, 0.15), SOFTMAX: (0.1, 0.2, 0.3)}
GRID = (0.05, 0.1, 0.2)
SETTINGS = {PAIRWISE: (0.05, 0.1), SOFTMAX: (0.1, 0.1)}
"""Temperature and rate of each loss: what :func:`choose_settings` gives."""
SANITY = 0.3
"""NDCG@5 that the softmax loss must reach without false negatives."""
CLAIMS = (
    Claim("clean", "without false negatives NDCG@5 is above that of the softmax loss (1% of it)", size=0.01),
    Claim("noisy", "with 30% false negatives NDCG@5 is above that of the softmax loss (1% of it)", size=0.01),
    Claim("decay", "30% false negatives cost less of NDCG@5 than they cost the softmax loss (1%)", size=0.01),
)


def run(scale: str, seed: int) -> Evidence:
    """NDCG@5 of both losses at three shares of false negatives."""
    values = {
        (arm, share): measure(arm, setting, scale, seed, share) for arm, setting in SETTINGS.items() for share in SHARES
    }
    if scale == "full":
        check_sane("NDCG@5 of the softmax loss", values[SOFTMAX, 0.0], SANITY)
    rows: list[dict[str, Any]] = [
        {"arm": f"{arm}, {100 * share:.0f}%", "loss": arm, "share": share, "NDCG@5": value}
        for (arm, share), value in values.items()
    ]

    def ratio(share: float) -> float:
        return values[PAIRWISE, share] / max(values[SOFTMAX, share], 1e-3)

    costs = {arm: values[arm, SHARES[-1]] / max(values[arm, 0.0], 1e-3) for arm in SETTINGS}
    effects = {"clean": ratio(0.0) - 1, "noisy": ratio(SHARES[-1]) - 1, "decay": costs[PAIRWISE] - costs[SOFTMAX]}
    return Evidence(rows, effects)


def measure(arm: str, setting: tuple[float, float], scale: str, seed: int, share: float) -> float:
    """NDCG@5 of factors that were trained by one loss."""
    tau, rate = setting
    loss: Loss = lambda pos, neg, users: pairwise_softmax_loss(pos, neg, tau=tau)  # noqa: E731
    if arm == SOFTMAX:
        loss = lambda pos, neg, users: softmax(pos, neg, tau)  # noqa: E731
    return fitted(loss, scale, seed, lr=rate, share=share)


def choose_settings() -> dict[str, tuple[float, float]]:
    """The setting of each loss with the best mean NDCG@5 over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    return {
        arm: best_setting(
            [(tau, rate) for tau in TAUS[arm] for rate in GRID],
            lambda setting, seed, arm=arm: measure(arm, setting, "full", seed, 0.0),
            pilots,
        )
        for arm in SETTINGS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """NDCG@5 by loss and share of false negatives."""
    return bars_figure(evidence, y="NDCG@5")
