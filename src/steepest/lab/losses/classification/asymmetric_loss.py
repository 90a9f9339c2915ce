"""Asymmetric loss: higher mean average precision than cross-entropy and focal loss where few labels are positive.

Set-up of the claim: pictures of 1 to 3 digits tiled, with 10 labels and 20 distractor labels that are never or
rarely present, 10% of the positives of the training part hidden, a small CNN; binary cross-entropy, focal loss with
gamma 2, asymmetric loss (ASL) with gamma 4 and 1 and clip 0.05. Expected: mean average precision 0.5 to 3 points above
binary cross-entropy, and more so with hidden positives: every arm is trained with all labels, too.

A picture has 28 x 28 pixels: MNIST digits of different classes, pooled to 14 x 14, in quarters drawn at random. 2,000
are to train and 3,000 to test, from separate halves of the digits; test labels are complete. Ten distractors are never
present, ten at random in 1% of the pictures each, with nothing to be seen of them: the mean is over the digits' labels.
The net sees one quarter at a time (a convolution of 14 x 14 in steps of 14), two layers of 128 rectified units, the
largest of each unit over the quarters, and a linear layer; ten epochs of AdamW in batches of 64, the rate falling as a
cosine. A fourth arm, with hidden positives alone, is ASL in the paper's main setting, gamma 4 and 0.

The baseline is fair: every arm has, for each of both sets of labels, the best of four rates for its own mean average
precision on two seeds that are not reported (AdamW's steps don't depend on a loss's scale, so the published sum and a
mean are alike), and one start and one order; cross-entropy's must reach 92% with hidden positives, which every seed
checks.

Changed against an earlier set-up: there a strided net had the whole picture at once and every arm a rate of 2e-3. At
that rate cross-entropy reached 79% where ASL reached 89%: it had not learned in time, and the gain of 9.7 points, far
above the claim, was one of speed. The net of quarters learns in time under every loss, and its outcomes spread
less: 14 seeds take the place of 50. Focal loss with all labels, of which nothing is claimed, is left out.

The size of the gain over cross-entropy is the middle of its range, 1.75, less the 0.5 it has to exceed. The card gives
the lead over focal loss and the difference that hiding makes no number: half a point is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as nnf
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ....descent.batches import seeded
from ....losses.classification._cells import MultilabelObjective
from ....losses.classification.asymmetric_loss import AsymmetricLoss
from ....losses.classification.binary_cross_entropy import BinaryCrossEntropyLoss
from ....nn.networks import mlp
from ...data import mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import PILOTS, best_setting, check_sane

SEEDS = 14
DIGITS, NEVER, RARE = 10, 10, 10
HIDDEN = 0.1
SIDE, WIDTH = 14, 128
EPOCHS = 10
RATES = (3e-3, 5e-3, 1e-2, 1.5e-2)
SANITY = 92.0
"""Mean average precision in percent that cross-entropy must reach with hidden positives."""
LOSSES: dict[str, MultilabelObjective] = {
    "cross-entropy": BinaryCrossEntropyLoss(),
    "focal": AsymmetricLoss(gamma_neg=2.0, gamma_pos=2.0, clip=0.0),
    "ASL": AsymmetricLoss(),
    "ASL, gamma+ 0": AsymmetricLoss(gamma_pos=0.0),
}
CLAIMS = (
    Claim(
        "gain",
        "with hidden positives ASL's mAP is at least 0.5 points above binary cross-entropy's (0.5 to 3 expected)",
        size=1.25,
        threshold=0.5,
    ),
    Claim("over focal", "and above that of focal loss (points)", size=0.5),
    Claim(
        "hidden",
        "its gain over cross-entropy is larger with hidden positives than with all labels (points)",
        size=0.5,
        ours=True,
    ),
)
ARMS = [(arm, "hidden") for arm in LOSSES] + [("cross-entropy", "all"), ("ASL", "all")]
"""Loss and labels of each arm; focal loss and the paper's main setting have no claim with all labels."""
Pictures = tuple[Tensor, Tensor, Tensor, Tensor]


def run(scale: str, seed: int) -> Evidence:
    """Mean average precision of four losses with some positives hidden, and of two with all labels."""
    full = scale == "full"
    rates = rates_of() if full else dict.fromkeys(ARMS, RATES[1])
    parts = pictures(full, seed)
    precisions = {arm: precision(arm, parts, rates[arm], EPOCHS if full else 2, seed) for arm in ARMS}
    if full:
        check_sane("mAP of cross-entropy", precisions["cross-entropy", "hidden"], SANITY)
    rows: list[dict[str, float | str]] = [
        {"arm": f"{arm}, labels: {labels}", "loss": arm, "labels": labels, "rate": rates[arm, labels], "mAP": value}
        for (arm, labels), value in precisions.items()
    ]
    gain = {labels: precisions["ASL", labels] - precisions["cross-entropy", labels] for labels in ("hidden", "all")}
    effects = {
        "gain": gain["hidden"],
        "over focal": precisions["ASL", "hidden"] - precisions["focal", "hidden"],
        "hidden": gain["hidden"] - gain["all"],
    }
    return Evidence(rows, effects)


@cache
def rates_of() -> dict[tuple[str, str], float]:
    """The rate of each arm with the best mean precision over two pilot seeds."""
    parts = {seed: pictures(True, seed) for seed in PILOTS[:2]}
    return {
        arm: best_setting(
            RATES, lambda rate, seed, arm=arm: precision(arm, parts[seed], rate, EPOCHS, seed), PILOTS[:2]
        )
        for arm in ARMS
    }


def precision(arm: tuple[str, str], parts: Pictures, rate: float, epochs: int, seed: int) -> float:
    """Mean average precision in percent over the digits' labels of the test pictures."""
    x, y, x_test, y_test = parts
    loss, labels = arm
    shown = y & (torch.rand(y.shape, generator=seeded(seed, 5)) >= HIDDEN) if labels == "hidden" else y
    scores = fit(LOSSES[loss], x, shown.float(), x_test, rate, epochs, seed)
    return 100 * float(average_precision_score(y_test[:, :DIGITS].numpy(), scores[:, :DIGITS].numpy()))


def pictures(full: bool, seed: int) -> Pictures:
    """Standardised pictures ``[N, 4, 196]``, a row a quarter, and labels ``[N, 30]``, to train and to test."""
    x, y = mnist_10k() if full else load_digits(return_X_y=True)
    images = torch.as_tensor(x / x.max(), dtype=torch.float32).unflatten(1, (1, int(x.shape[1] ** 0.5), -1))
    images = nnf.interpolate(images, size=SIDE, mode="area" if full else "bilinear").squeeze(1)
    halves = train_test_split(np.arange(len(y)), train_size=0.5, stratify=y, random_state=seed)
    tensors: list[Tensor] = []
    for place, half in enumerate(halves):
        count = (2000, 3000)[place] if full else 200
        tensors += tile(images[half], y[half], count, np.random.default_rng([seed, place]))
    mean, scale = tensors[0].mean(), tensors[0].std()
    return (tensors[0] - mean) / scale, tensors[1], (tensors[2] - mean) / scale, tensors[3]


def tile(images: Tensor, y: np.ndarray, count: int, rng: np.random.Generator) -> list[Tensor]:
    """One to three digits of different classes in the quarters of each picture, and its labels with distractors."""
    canvas = torch.zeros(count, 4, SIDE * SIDE)
    labels = np.zeros((count, DIGITS + NEVER + RARE), dtype=bool)
    members = [np.flatnonzero(y == digit) for digit in range(DIGITS)]
    for picture in range(count):
        present = rng.permutation(DIGITS)[: rng.integers(1, 4)]
        for digit, quarter in zip(present, rng.permutation(4)):
            canvas[picture, quarter] = images[rng.choice(members[digit])].flatten()
        labels[picture, present] = True
    labels[:, DIGITS + NEVER :] = rng.random((count, RARE)) < 0.01
    return [canvas, torch.as_tensor(labels)]


class Quarters(nn.Module):
    """Quarters ``[B, 4, 196]`` to logits ``[B, labels]``: a net of two layers on each, the largest of each unit."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.on_each = mlp(SIDE * SIDE, width=WIDTH, depth=2)
        self.head = nn.Linear(WIDTH, labels)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.on_each(x).amax(1))
        return logits


def fit(
    loss: MultilabelObjective, x: Tensor, target: Tensor, x_test: Tensor, rate: float, epochs: int, seed: int
) -> Tensor:
    """Test outputs of the net trained with one loss."""
    torch.manual_seed(seed)
    net = Quarters(target.shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    batches = [torch.randperm(len(x), generator=seeded(seed, epoch)).split(64) for epoch in range(epochs)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, sum(map(len, batches)))
    for rows in (rows for epoch in batches for rows in epoch):
        optimizer.zero_grad()
        loss(net(x[rows]), target[rows]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        outputs: Tensor = net(x_test)
    return outputs


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Mean average precision by loss and labels."""
    return bars_figure(evidence, y="mAP")
