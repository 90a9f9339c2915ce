"""Pathways through experts after the training loss has converged: do they grow alike and smooth, and what does it say?

Set-up of the claims, as on the card: 200 of scikit-learn's digits, a mixture of 8 experts of which 2 are used, in 4
layers; AdamW on the full batch at a rate of 0.001 with a weight decay of 1. The mean normalised distance of all pairs
of training samples (D), their mean consistency (C), and the accuracy on the other 1,597 digits are measured at 20
steps. What is changed: width 32 (64) and 600 steps (1,500), so that 14 seeds fit. A first run of 5 seeds, width 64 and
1,000 steps, had too few: D fell by 0.010 and C rose by 0.21, accuracy and both correlations went either way, and it
could only have found 3.7 points and correlations of 0.9.

Claims, with the card's sizes: from the first measurement with a training loss below 0.1 to the end, D falls (0.69 to
0.61) and accuracy rises (89.7% to 92.4%); C rises from the beginning to the end (-0.005 to 0.15); over the measurements
since the loss converged, Spearman's correlation of D with accuracy is below 0 (-0.89), that of C above 0 (0.53). Ours:
the false alarm of the card. Where nothing can be generalised, D falls under weight decay too (0.82 to 0.70 on modular
addition that did not generalise): here the same digits with labels in random order, the control that the card names.

Both arms have the same network, rate and decay, those of the card, and the same digits. It is sane where accuracy with
true labels comes above 80%. D falls by a hundredth, an eighth of what the card saw on one seed, and the result hangs on
the network, which the card does not say in full: on a seed that is not reported, with pixels in [0, 1] instead of
standardised ones (width 32) D rises after convergence, from 0.78 to 0.82, while accuracy rises by 2.6 points; without
normalised inputs of the layers neither D nor accuracy moves one way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy

from ....core.probe import Moment
from ....core.random import seed_all
from ....watch.representations.grokking_pathways import MoEClassifier, PathwayMonitor
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import check_sane

TRAIN, STEPS, RATE, DECAY, WIDTH = 200, 600, 1e-3, 1.0, 32
MEASURED = (0, 10, 20, 30, 40, 60, 80, 100, 130, 160, 200, 240, 280, 320, 360, 400, 450, 500, 550, 600)
CONVERGED, SANITY, SEEDS = 0.1, 80.0, 14
TRUE, RANDOM = "true labels", "random labels"
CLAIMS = (
    Claim("distance", "D falls once the loss has converged", size=0.08),
    Claim("consistency", "C rises from the beginning to the end", size=0.15),
    Claim("accuracy", "accuracy rises once the loss has converged, in points", size=2.7),
    Claim("D and accuracy", "Spearman's correlation of D and accuracy is below 0", size=0.89, greater=False),
    Claim("C and accuracy", "Spearman's correlation of C and accuracy is above 0", size=0.53),
    Claim("false alarm", "with random labels D falls too", size=0.12, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Distance, consistency and accuracy over steps, with true labels and with random ones."""
    full = scale == "full"
    curves = {arm: watched(arm, seed, full) for arm in (TRUE, RANDOM)}
    if full:
        check_sane("accuracy", curves[TRUE][-1]["accuracy"], SANITY)
    after = {arm: since_converged(curve) for arm, curve in curves.items()}
    own = after[TRUE]
    accuracy = [row["accuracy"] for row in own]
    effects = {
        "distance": own[0]["D"] - own[-1]["D"],
        "consistency": own[-1]["C"] - curves[TRUE][0]["C"],
        "accuracy": accuracy[-1] - accuracy[0],
        "D and accuracy": rank_correlation([row["D"] for row in own], accuracy),
        "C and accuracy": rank_correlation([row["C"] for row in own], accuracy),
        "false alarm": after[RANDOM][0]["D"] - after[RANDOM][-1]["D"],
    }
    rows: list[dict[str, Any]] = [{"arm": arm, **row} for arm, curve in curves.items() for row in curve]
    return Evidence(rows, effects)


def watched(arm: str, seed: int, full: bool) -> list[dict[str, float]]:
    """The measurements of a run, in order."""
    x, y, x_test, y_test = samples(seed, torch.float32 if full else torch.float64)
    if arm == RANDOM:
        y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    seed_all(seed)
    model = MoEClassifier(x.shape[1], 10, WIDTH).to(x.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    monitor = PathwayMonitor(x if full else x[:20])
    steps, measured = (STEPS, MEASURED) if full else (4, (0, 2, 4))
    curve: list[dict[str, float]] = []
    for step in range(steps + 1):
        outputs = model(x)
        loss = cross_entropy(outputs, y)
        if step in measured:
            numbers = monitor.measure(Moment(step + 1, "gradients", model)).numbers
            with torch.no_grad():
                right = (model(x_test).argmax(1) == y_test).double().mean()
            curve.append(
                {
                    "step": step,
                    "D": float(numbers["distance"]),
                    "C": float(numbers["consistency"]),
                    "loss": loss.item(),
                    "accuracy": 100 * float(right),
                }
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve


def samples(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits that train, their labels, and the same of the others."""
    x, y, x_test, y_test = digits(seed, train=TRAIN)
    return (
        torch.as_tensor(x, dtype=dtype),
        torch.as_tensor(y),
        torch.as_tensor(x_test, dtype=dtype),
        torch.as_tensor(y_test),
    )


def since_converged(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """The measurements from the first one with a small loss on, at least the last two."""
    place = next((place for place, row in enumerate(curve) if row["loss"] < CONVERGED), len(curve))
    return curve[min(place, len(curve) - 2) :]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; 0 where one does not move."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """D over steps."""
    return arms_figure(evidence, x="step", y="D")
