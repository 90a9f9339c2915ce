"""AdaMixUp: where mixtures fall on real data of another class, learned intervals beat mixup's fixed law.

Two set-ups, each with no mixing, mixup (alpha 1, a coefficient for each pair as in the authors' code) and AdaMixUp:

- images: a small CNN on 300 of scikit-learn's digits, which take the place of Fashion-MNIST, tested on the others; the
  policy has the same architecture. Equal batches of 60 and equal steps: AdaMixUp's half of a batch that only the
  discriminator sees is part of its price. The card's "a few percent relative" is 5% of mixup's error.
- plane: three clusters on a line, A at -1, B at 0, A' at 1, standard deviation 0.2; A and A' are one class, so the
  mixtures of A with A' fall on B with the wrong label. 45% of the 400 rows are A, 45% A', 10% B: with even shares
  mixtures of B with itself outweigh the intruders at 0. Accuracy on 500 fresh rows of B; a drop or rise counts from 5
  points on. "Avoids 1/2": the interval of at most half of the A-A' pairs of the training rows contains 1/2 (size: a
  quarter of the pairs away from that).

AdamW at 3e-3 for all arms, weight decay 1e-4 as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....core.method import Method, Plain
from ....data.mixing import AdaMixUp
from ....data.mixing._mixtures import Mixup
from ....descent import ArrayBatches, Descent
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....nn.networks import Network, mlp
from ...classify import small_cnn
from ...data import digits
from ...experiment import Claim, Evidence

SEEDS = 120
ARMS = ("none", "mixup", "AdaMixUp")
CLAIMS = (
    Claim("images", "images: AdaMixUp's error is below mixup's (share of mixup's error)", size=0.05),
    Claim("drop", "plane: mixup's accuracy on B is below that without mixing (points)", size=5.0),
    Claim(
        "kept", "plane: AdaMixUp's accuracy on B is not below that without mixing by 5 points", size=5.0, threshold=-5.0
    ),
    Claim(
        "avoids",
        "plane: the learned interval contains 1/2 for less than half of the A-A' pairs",
        size=0.25,
        threshold=0.5,
        greater=False,
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """Error on digits, accuracy on B and the intervals of A-A' pairs."""
    epochs = 40 if scale == "full" else 2
    x, y, other, labels = (
        torch.as_tensor(v, dtype=torch.long if i % 2 else torch.float32) for i, v in enumerate(digits(seed, train=300))
    )
    points, classes = clusters((180, 40, 180), seed)
    fresh, _ = clusters((0, 500, 0), seed + 10_000)
    error, on_b, inside = {}, {}, 0.5
    for arm in ARMS:
        model, _ = train(arm, x, y, lambda: small_cnn(64), 64, epochs=epochs, batch_size=60, seed=seed)
        with torch.no_grad():
            error[arm] = 100 * float((model(other).argmax(1) != labels).float().mean())
        model, method = train(
            arm, points, classes, lambda: mlp(2, width=32), 32, epochs=epochs, batch_size=40, seed=seed
        )
        with torch.no_grad():
            on_b[arm] = 100 * float((model(fresh).argmax(1) == 1).float().mean())
            if isinstance(method, AdaMixUp):
                a, b = method.policy(points[:180], points[220:])
                inside = float(((a < 0.5) & (a + b > 0.5)).float().mean())
    rows = [{"arm": arm, "error on digits": error[arm], "accuracy on B": on_b[arm]} for arm in ARMS]
    effects = {
        "images": 1 - error["AdaMixUp"] / error["mixup"],
        "drop": on_b["none"] - on_b["mixup"],
        "kept": on_b["AdaMixUp"] - on_b["none"],
        "avoids": inside,
    }
    return Evidence(rows, effects)


def clusters(sizes: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """A, B and A' of these sizes in the plane, in this order; A and A' are class 0, B is class 1."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.repeat_interleave(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(sizes))
    points = 0.2 * torch.randn(len(place), 2, generator=generator)
    points[:, 0] += place
    return points, (place == 0).long()


def train(
    arm: str,
    x: Tensor,
    y: Tensor,
    body: Callable[[], nn.Module],
    feature_dim: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> tuple[nn.Module, Method]:
    """A classifier by one arm: the same start and the same batches for all."""
    classes = int(y.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Network(body(), nn.Linear(feature_dim, classes))
        method: Method = Plain()
        if arm == "mixup":
            method = Mixup(1.0, per_sample=True, seed=seed)
        elif arm == "AdaMixUp":
            method = AdaMixUp(body(), feature_dim, classes, seed=seed)
    batches = ArrayBatches(x, y, batch_size=batch_size, seed=seed)
    optimizer = torch.optim.AdamW([*model.parameters(), *method.parameters()], lr=3e-3, weight_decay=1e-4)
    Descent(model, CrossEntropyLoss(), batches, method=method, optimizer=optimizer).fit(epochs)
    return model.eval(), method.eval()


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Error on digits and accuracy on B: a dot for each seed, a line at the mean."""
    panels = Figure(figsize=(6.4, 2.2), layout="constrained")
    for axes, key in zip(panels.subplots(1, 2, sharey=True), ("error on digits", "accuracy on B")):
        for place, arm in enumerate(ARMS):
            values = [row[key] for each in evidence for row in each.rows if row["arm"] == arm]
            axes.plot(values, [place] * len(values), "o", color="#0b5c94", alpha=0.3, markersize=4)
            axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
        axes.set_xlabel(f"{key} (%)")
        axes.spines[["right", "top"]].set_visible(False)
        axes.set_yticks(range(len(ARMS)), ARMS)
    panels.axes[0].invert_yaxis()
    return panels
