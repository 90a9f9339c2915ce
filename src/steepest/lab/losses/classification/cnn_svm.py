"""CNN-SVM: support vector machines in place of softmax are close to it, slightly behind, with sparse gradients.

Set-up of the claim: digits, the published net under cross-entropy, L1-SVM and L2-SVM, trained by the published
optimizer (Adam, rate 1e-3, batches of 128). Expected: softmax 0 to 1.5 points ahead (91.86 to 90.72 in the original),
L2 above L1, and a share of active cells (t z < 1, the ones that have a gradient) that falls to a few percent.

scikit-learn's digits (8 x 8, 1,200 to train, 597 to test) take the place of Fashion-MNIST, and 100 epochs (1,000 steps)
that of 10,000 steps. A first set-up, 320 steps on 4,000 MNIST digits, left the published machines far from trained (L1
at 20% accuracy, shares of active cells still falling) and was given up for that. The machines are the published ones:
C = 1, the mean over the cells, half the squared norm of the last weight added.

The comparison is fair: all have the published optimizer, and softmax must reach 96%, as each seed checks. On a split
that is not reported, a rate that falls from 3e-3 or 6e-3 to 0 within 70 epochs gave softmax 98.0%, L2 98.3 and 98.2%,
and left L1, which needs most steps, at 54 and 10%. A sum over the cells in place of the mean, where the penalty weighs
next to nothing, was a fourth arm before: L2 had 99.0%, and 0.6% of the cells active.

The size of the lead is the middle of its range, 0.75 points; that of closeness is what the original's 1.14 points leave
below 1.5. The card gives L2 above L1 no number: half a point is taken. "A few percent" is read as below 5, with a size
of 2, of the cells of the last epoch's batches, for the larger share of L1 and L2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ....core.logpartition import class_mask
from ....descent.batches import seeded
from ....losses.classification.cnn_svm import CNNSVM
from ....losses.classification.cross_entropy import cross_entropy
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import check_sane

SVMS = {"L1-SVM": 1, "L2-SVM": 2}
SANITY = 96.0
CLAIMS = (
    Claim("lead", "softmax is ahead of L2-SVM (accuracy, 0 to 1.5 points expected)", size=0.75),
    Claim("close", "and by less than 1.5 points", size=0.36, threshold=1.5, greater=False),
    Claim("square", "L2-SVM is above L1-SVM (points)", size=0.5, ours=True),
    Claim(
        "active",
        "in the last epoch fewer than 5% of the cells have a gradient",
        size=2.0,
        threshold=5.0,
        greater=False,
        ours=True,
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """Test accuracy of three heads on one net, and the share of active cells by epoch."""
    full = scale == "full"
    images, y, images_test, y_test = data(full, seed)
    rows: list[dict[str, float | str]] = []
    accuracy: dict[str, float] = {}
    active: dict[str, float] = {}
    for arm in ("softmax", *SVMS):
        net, shares = train(arm, images, y, 100 if full else 2, seed)
        accuracy[arm] = 100 * float((predict(net, images_test) == y_test).float().mean())
        active[arm] = shares[-1]
        rows += [
            {"arm": arm, "epoch": epoch + 1, "active cells (%)": share, "accuracy": accuracy[arm]}
            for epoch, share in enumerate(shares)
            if epoch % 5 == 0 or epoch + 1 == len(shares)
        ]
    if full:
        check_sane("accuracy of softmax (%)", accuracy["softmax"], SANITY)
    effects = {
        "lead": accuracy["softmax"] - accuracy["L2-SVM"],
        "close": accuracy["softmax"] - accuracy["L2-SVM"],
        "square": accuracy["L2-SVM"] - accuracy["L1-SVM"],
        "active": max(active["L1-SVM"], active["L2-SVM"]),
    }
    return Evidence(rows, effects)


def data(full: bool, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``[N, 1, 8, 8]`` in [0, 1] and labels, to train and to test."""
    x, y = load_digits(return_X_y=True)
    images = torch.as_tensor(x / x.max(), dtype=torch.float32).unflatten(1, (1, 8, 8))
    own, held = train_test_split(np.arange(len(y)), train_size=1200 if full else 256, stratify=y, random_state=seed)
    labels = torch.as_tensor(y)
    return images[own], labels[own], images[held], labels[held]


def train(arm: str, x: Tensor, y: Tensor, epochs: int, seed: int) -> tuple[CNNSVM, list[float]]:
    """The net under one loss; all arms share initial weights, order and dropout. Active cells in percent by epoch."""
    torch.manual_seed(seed)
    # channels last and the fused optimizer: three times as fast
    net = CNNSVM(image_size=x.shape[-1], p=SVMS.get(arm, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    shares = []
    for epoch in range(epochs):
        active = []
        for rows in torch.randperm(len(x), generator=seeded(seed, epoch)).split(128):
            logits = net(x[rows])
            loss = net.loss(logits, y[rows]) if arm in SVMS else cross_entropy(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            z = logits.detach()
            own = torch.where(class_mask(y[rows], z.shape[1]), z, -z)
            active.append(float((own < 1).float().mean()))
        shares.append(100 * float(np.mean(active)))
    return net, shares


@torch.no_grad()
def predict(net: CNNSVM, x: Tensor) -> Tensor:
    """The class of the largest output."""
    net.eval()
    return torch.cat([net(batch).argmax(-1) for batch in x.split(500)])


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Active cells over training; accuracy in the legend. Every cell of softmax has a gradient."""
    curves = []
    rows = [row for of_seed in evidence for row in of_seed.rows]
    for of_seed in evidence:
        own = []
        for row in of_seed.rows:
            mean = np.mean([peer["accuracy"] for peer in rows if peer["arm"] == row["arm"]])
            if row["arm"] != "softmax":
                own.append({**row, "arm": f"{row['arm']}: accuracy {mean:.2f}"})
        curves.append(Evidence(own, {}))
    figure = arms_figure(curves, x="epoch", y="active cells (%)")
    softmax = np.mean([row["accuracy"] for row in rows if row["arm"] == "softmax"])
    figure.axes[0].set_title(f"softmax: accuracy {softmax:.2f}, every cell active", fontsize=8, loc="left")
    figure.axes[0].set_ylim(bottom=0)
    return figure
