"""A cosine softmax that hardens by itself beside fixed ones, in retrieval of identities that training has not seen.

Set-up of the claims, of the first stage: 8 images of each of 100 generated identities, 14 x 14 pixels
(:func:`identities`), a small convolutional network with embeddings of 32 numbers, 15 epochs of Adam in batches of 64;
mean average precision (mAP) on 8 images of each of 100 other identities. The adaptive loss with its published settings
(alpha .02, a scale of at least 32); CosFace with scale 32 and margin .15; a softmax of cosines with scale 32. The
publication improves mAP on revisited Oxford and Paris; one point is taken as the size. With five classes a trial of
ours had .40 against .51 of CosFace, because 32 is hard for few classes: the same is claimed of a scale of at least 16
against CosFace with scale 16.

That supervision hardens is checked too: from the first epoch to the last, in the mean over batches, the margin grows by
.05, and the scale by 5 where 16 is its least. Of the published least scale growth was claimed in a first record: in
two of three seeds it stays 32, and the mean of 2.4 [-.6, 5.4] was not told from 0.

Each loss has the best of three rates by mAP on two seeds that are not reported (:func:`choose_rates`). The softmax of
cosines must reach an R@1 of 20%, twenty times what chance gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....core.objective import Objective
from ....losses.contrastive.cfcd import AdaptiveMarginCosineLoss
from ....losses.contrastive.hyperspherical_embedding import NormalizedSoftmaxLoss
from ....losses.contrastive.margin_softmax import CosFaceLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...identities import embed, identities, train_cosines, verification
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 26


class Recorded(AdaptiveMarginCosineLoss):
    """The same, which keeps scale and margin of every step."""

    def __init__(self, alpha: float = 0.02, min_scale: float = 32.0) -> None:
        super().__init__(alpha, min_scale)
        self.steps: list[tuple[float, float]] = []

    def forward(self, outputs: Tensor, target: Tensor, **needs: Any) -> Tensor:
        """The loss of cosines and class indices."""
        loss = super().forward(outputs, target, **needs)
        self.steps.append((float(self.terms["scale"]), float(self.terms["margin"])))
        return loss


ADAPTIVE, COS, PLAIN = "adaptive", "CosFace", "softmax of cosines"
LOW, LOW_COS = "adaptive, scale from 16", "CosFace, scale 16"
ARMS: dict[str, tuple[type[Objective], dict[str, Any]]] = {
    ADAPTIVE: (Recorded, {}),
    LOW: (Recorded, {"min_scale": 16.0}),
    LOW_COS: (CosFaceLoss, {"margin": 0.15, "scale": 16.0}),
    COS: (CosFaceLoss, {"margin": 0.15, "scale": 32.0}),
    PLAIN: (NormalizedSoftmaxLoss, {"scale": 32.0}),
}
GRID = (3e-3, 1e-2, 3e-2)
RATES: dict[str, float] = {
    "adaptive": 0.01,
    "adaptive, scale from 16": 0.01,
    "CosFace, scale 16": 0.003,
    "CosFace": 0.01,
    "softmax of cosines": 0.01,
}
"""The rate of each loss: what :func:`choose_rates` gives."""
SANITY = 20.0
"""R@1 of the softmax of cosines, in per cent."""
CLAIMS = (
    Claim("CosFace", "mAP of the adaptive loss is above that of CosFace (1 point)", size=1.0),
    Claim("softmax", "mAP of the adaptive loss is above that of a softmax of cosines (1 point)", size=1.0),
    Claim("low", "mAP of the adaptive loss from 16 is above that of CosFace at 16 (1 point)", size=1.0),
    Claim("margin", "the margin grows from the first epoch to the last (.05)", size=0.05),
    Claim("scale", "from 16 the scale grows from the first epoch to the last (5)", size=5.0),
)


def run(scale: str, seed: int) -> Evidence:
    """Retrieval of other identities by each loss; scales and margins at both ends of the training."""
    rows: list[dict[str, Any]] = [{"arm": arm, **measure(arm, RATES[arm], scale, seed)} for arm in ARMS]
    by_arm = {row["arm"]: row for row in rows}
    if scale == "full":
        check_sane("R@1 of the softmax of cosines", by_arm[PLAIN]["R@1"], SANITY)
    own = by_arm[ADAPTIVE]
    effects = {
        "CosFace": own["mAP"] - by_arm[COS]["mAP"],
        "softmax": own["mAP"] - by_arm[PLAIN]["mAP"],
        "margin": own["last margin"] - own["first margin"],
        "low": by_arm[LOW]["mAP"] - by_arm[LOW_COS]["mAP"],
        "scale": by_arm[LOW]["last scale"] - by_arm[LOW]["first scale"],
    }
    return Evidence(rows, effects)


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, float]:
    """Verification of other identities after training; of the adaptive loss also scales and margins."""
    full = scale == "full"
    dtype = torch.float32 if full else torch.float64
    count = 100 if full else 6
    x, y = identities(count, 8, seed, 0)
    x_test, y_test = identities(count, 8, seed, 1)
    objective, hyper = ARMS[arm]
    epochs = 15 if full else 2
    encoder, _, loss = train_cosines(x.to(dtype), y, objective, hyper, epochs=epochs, lr=rate, seed=seed)
    row = verification(embed(encoder, x_test.to(dtype)), y_test)
    if isinstance(loss, Recorded):
        steps = torch.tensor(loss.steps, dtype=torch.float64).unflatten(0, (epochs, -1)).mean(1)
        for column, name in enumerate(("scale", "margin")):
            row |= {f"first {name}": float(steps[0, column]), f"last {name}": float(steps[-1, column])}
    return row


def choose_rates() -> dict[str, float]:
    """The rate of each loss with the best mean mAP over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)["mAP"], pilots)
        for arm in ARMS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """mAP by loss."""
    return bars_figure(evidence, y="mAP")
