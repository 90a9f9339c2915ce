"""Margin softmax with and without the batch's own negative pairs, on identities that training has not seen.

Set-up of the claims: 8 images of each of 100 generated identities, 14 x 14 pixels (:func:`identities`), a small
convolutional network with embeddings of 32 numbers, 15 epochs of Adam in batches of 64. On 8 images of each of 100
other identities: the share of pairs of one identity that are accepted where 1% of the others are (TAR), the nearest
neighbour (R@1), and the spread of cosines of different identities. Scale 64, and 16 for CosFace alone, which suits 100
classes in 32 dimensions; CosFace with a margin of .35, ArcFace with .5; whiskers of 1.5.

The publication's gain is 1.2 points of TAR (IJB-B, CosFace, 89.4 to 90.6), which is taken as the size for TAR and R@1.
It is claimed for many classes: a trial of ours with five digits gave a tie. That negative cosines spread less, by .01,
is the mechanism, and is claimed of scale 16: at 64 a margin softmax alone leaves all embeddings in a narrow cone.

Each loss has the best of four rates by TAR on two seeds that are not reported (:func:`choose_rates`). CosFace must
reach an R@1 of 20%, twenty times what chance gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from ....core.objective import Objective
from ....losses.contrastive.margin_softmax import ArcFaceLoss, CosFaceLoss
from ....losses.contrastive.unpg import UnifiedNegativePairLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...identities import embed, identities, train_cosines, verification
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 10
COS, COS_PAIRS, UNFILTERED = "CosFace", "CosFace, pairs", "CosFace, all pairs"
ARC, ARC_PAIRS = "ArcFace", "ArcFace, pairs"
LOW, LOW_PAIRS = "CosFace, scale 16", "CosFace, scale 16, pairs"
ARMS: dict[str, tuple[type[Objective], dict[str, Any]]] = {
    COS: (CosFaceLoss, {"margin": 0.35}),
    COS_PAIRS: (UnifiedNegativePairLoss, {"margin": 0.35}),
    UNFILTERED: (UnifiedNegativePairLoss, {"margin": 0.35, "whisker": math.inf}),
    ARC: (ArcFaceLoss, {"margin": 0.5}),
    ARC_PAIRS: (UnifiedNegativePairLoss, {"margin": 0.5, "kind": "angle"}),
    LOW: (CosFaceLoss, {"margin": 0.35, "scale": 16.0}),
    LOW_PAIRS: (UnifiedNegativePairLoss, {"margin": 0.35, "scale": 16.0}),
}
GRID = (3e-3, 1e-2, 3e-2, 1e-1)
RATES: dict[str, float] = {
    "CosFace": 0.01,
    "CosFace, pairs": 0.03,
    "CosFace, all pairs": 0.03,
    "ArcFace": 0.01,
    "ArcFace, pairs": 0.03,
    "CosFace, scale 16": 0.01,
    "CosFace, scale 16, pairs": 0.03,
}
"""The rate of each loss: what :func:`choose_rates` gives."""
SANITY = 20.0
"""R@1 of CosFace, in per cent."""
CLAIMS = (
    Claim("cos", "with pairs CosFace accepts more pairs of one identity at 1% of the others (1.2 points)", size=1.2),
    Claim("arc", "with pairs ArcFace accepts more pairs of one identity at 1% of the others (1.2 points)", size=1.2),
    Claim("cos, R@1", "with pairs R@1 of CosFace is higher (1.2 points)", size=1.2),
    Claim("arc, R@1", "with pairs R@1 of ArcFace is higher (1.2 points)", size=1.2),
    Claim("scale 16", "the same of CosFace at scale 16 (1.2 points)", size=1.2),
    Claim("spread", "with pairs cosines of different identities spread less (.01)", size=1.0, greater=False, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Verification of other identities by each loss."""
    rows: list[dict[str, Any]] = [{"arm": arm, **measure(arm, RATES[arm], scale, seed)} for arm in ARMS]
    by_arm = {row["arm"]: row for row in rows}
    if scale == "full":
        check_sane("R@1 of CosFace", by_arm[COS]["R@1"], SANITY)

    def gain(measure_of: str, arm: str, base: str) -> float:
        return float(by_arm[arm][measure_of] - by_arm[base][measure_of])

    effects = {
        "cos": gain("TAR", COS_PAIRS, COS),
        "arc": gain("TAR", ARC_PAIRS, ARC),
        "cos, R@1": gain("R@1", COS_PAIRS, COS),
        "arc, R@1": gain("R@1", ARC_PAIRS, ARC),
        "scale 16": gain("TAR", LOW_PAIRS, LOW),
        "spread": gain("spread", LOW_PAIRS, LOW),
    }
    return Evidence(rows, effects)


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, float]:
    """Verification of other identities after training."""
    full = scale == "full"
    dtype = torch.float32 if full else torch.float64
    count = 100 if full else 6
    x, y = identities(count, 8, seed, 0)
    x_test, y_test = identities(count, 8, seed, 1)
    objective, hyper = ARMS[arm]
    epochs = 15 if full else 2
    encoder, _, _ = train_cosines(x.to(dtype), y, objective, hyper, epochs=epochs, lr=rate, seed=seed)
    return verification(embed(encoder, x_test.to(dtype)), y_test)


def choose_rates() -> dict[str, float]:
    """The rate of each loss with the best mean TAR over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)["TAR"], pilots)
        for arm in ARMS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accepted pairs by loss."""
    return bars_figure(evidence, y="TAR")
