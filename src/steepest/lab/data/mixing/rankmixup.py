"""RankMixup: confidences that follow the order of the mixing coefficients are calibrated, at equal accuracy.

Set-up of the claim: a small CNN trained by cross-entropy (CE), mixup (alpha 2, as RankMixup's), RankMixup with the
mixup ranking loss (MRL, margin 2, one mixture) and with M-NDCG (three mixtures), both with weight 0.1 and alpha 2;
calibration error (ECE, 15 bins) of the test rows. 300 of scikit-learn's digits take the place of Fashion-MNIST: fewer
training rows than the card's 10,000, so that a network of this size grows over-confident as the paper's do. SGD with
momentum 0.9, drops of the rate at 40% and 60% of 80 epochs as in the paper, learning rate 0.05 (the paper's 0.1 is for
networks with batch normalisation) and weight decay 5e-4 for all arms. Of the remaining digits 400 set a temperature,
for the column after scaling, and the others are the test.

The claim's numbers: ECE lower than that of CE by a third or more (for each loss), and below mixup's; accuracy within
half a point; the mean confidence of mixtures of two classes falls with 1 - lambda, here at every step of the grid
1, 0.9, ..., 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....core.method import Method, Plain
from ....data.mixing import RankMixup
from ....data.mixing._mixtures import Mixup
from ....descent import ArrayBatches, Descent
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....nn.networks import Network
from ....post.calibration.calibration_benchmark import ece, temperature_scale
from ...classify import small_cnn
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import arms_figure

SEEDS = 8
GRID = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
CLAIMS = (
    Claim("mndcg", "M-NDCG: ECE below that of CE by a third or more", size=1 / 3, threshold=1 / 3),
    Claim("mrl", "MRL: ECE below that of CE by a third or more", size=1 / 3, threshold=1 / 3),
    Claim("mixup", "M-NDCG: ECE below that of mixup (share of mixup's)", size=1 / 3),
    Claim("accuracy", "M-NDCG: accuracy within 0.5 points of CE, or above", size=0.5, threshold=-0.5),
    Claim(
        "order",
        "M-NDCG: mean confidence of mixtures falls at every step from lambda 1 to 0.5 (smallest fall, in points)",
        size=1.0,
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """ECE, accuracy and the confidence of mixtures of the four arms."""
    full = scale == "full"
    data = digits(seed, train=300)
    x, y, other, labels = (torch.as_tensor(v, dtype=torch.long if i % 2 else torch.float32) for i, v in enumerate(data))
    arms: dict[str, Method] = {
        "CE": Plain(),
        "mixup": Mixup(2.0, seed=seed),
        "MRL": RankMixup(kind="mrl", seed=seed),
        "M-NDCG": RankMixup(seed=seed),
    }
    rows: list[dict[str, Any]] = []
    found: dict[str, dict[str, float]] = {}
    falls: list[float] = []  # of the last arm, M-NDCG
    for arm, method in arms.items():
        model = train(method, x, y, epochs=80 if full else 3, seed=seed)
        with torch.no_grad():
            logits = model(other)
        scaled = logits[400:] / temperature_scale(logits[:400], labels[:400])
        found[arm] = {
            "ece": 100 * ece(logits[400:].double().softmax(1), labels[400:]),
            "after": 100 * ece(scaled.double().softmax(1), labels[400:]),
            "accuracy": 100 * float((logits[400:].argmax(1) == labels[400:]).float().mean()),
        }
        falls = confidences(model, other[400:], labels[400:], seed)
        for lam, confidence in zip(GRID, falls):
            rows.append({"arm": arm, "1 - lambda": round(1 - lam, 1), "mean confidence": confidence} | found[arm])
    error = {arm: found[arm]["ece"] for arm in arms}
    effects = {
        "mndcg": 1 - error["M-NDCG"] / error["CE"],
        "mrl": 1 - error["MRL"] / error["CE"],
        "mixup": 1 - error["M-NDCG"] / error["mixup"],
        "accuracy": found["M-NDCG"]["accuracy"] - found["CE"]["accuracy"],
        "order": min(100 * (a - b) for a, b in pairwise(falls)),
    }
    return Evidence(rows, effects)


def train(method: Method, x: Tensor, y: Tensor, *, epochs: int, seed: int) -> nn.Module:
    """A small CNN, the same start and the same batches for every method."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Network(small_cnn(x.shape[1]), nn.Linear(64, 10))
    batches = ArrayBatches(x, y, batch_size=60, seed=seed)
    steps = epochs * -(-len(x) // 60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(0.4 * steps), round(0.6 * steps)])
    Descent(model, CrossEntropyLoss(), batches, method=method, optimizer=optimizer, schedule=schedule).fit(epochs)
    return model.eval()


@torch.no_grad()
def confidences(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> list[float]:
    """Mean largest probability of mixtures of test rows of two classes, by coefficient."""
    partner = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    kept = y != y[partner]
    first, second = x[kept], x[partner][kept]
    return [float(model(lam * first + (1 - lam) * second).softmax(1).amax(1).mean()) for lam in GRID]


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Confidence of mixtures over 1 - lambda; the legend holds the ECE."""
    rows = [row for each in evidence for row in each.rows]
    mean = {arm: [row["ece"] for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}
    named = {arm: f"{arm} (ECE {sum(v) / len(v):.1f} points)" for arm, v in mean.items()}
    shown = [Evidence([row | {"arm": named[row["arm"]]} for row in each.rows], each.effects) for each in evidence]
    return arms_figure(shown, x="1 - lambda", y="mean confidence")
