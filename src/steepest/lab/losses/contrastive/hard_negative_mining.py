"""Where hard mining collapses: the batch-hard triplet loss over the size of the batch and the width of the embedding.

Set-up: scikit-learn's digits with pixels in [0, 1], 1,200 for training; a perceptron of 128 rectified units to an
embedding of 2, 8 or 64 numbers; the batch-hard triplet loss with margin 0.2 on Euclidean distances; 300 steps of Adam
on random batches of 16, 64 or 256. No rate is chosen, because a collapse depends on it: all arms of the first three
claims have 1e-3, and those of the last two, as the trial behind the claim had them, 1e-2. Measured: the mean distance
of two of 500 other digits, the mean of the loss over the last 30 steps, and the share of those digits whose nearest
neighbour among the training digits is of their class, which must be 0.9 with 64 numbers.

The publication's point: mining that is hard shrinks an embedding that cannot be ideal, more so with more rows to mine
from and with fewer dimensions. The numbers are those of a trial: with two numbers mean distances 0.56, 0.25, 0.16 and
losses 0.12, 0.15, 0.19 as the batch grows; at 1e-2 and 256 rows all is one point and the loss stays at the margin; with
64 numbers the distance is near 1. Triplets at random, at the same rate, width and batch, do not collapse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ....core.checks import refuse
from ....losses.contrastive.hard_negative_mining import BatchHardTripletLoss, collapse_score
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

SEEDS = 6
MARGIN = 0.2
ARMS: dict[str, tuple[str, int, int, float]] = {
    "16 rows, 2 numbers": ("hard", 16, 2, 1e-3),
    "64 rows, 2 numbers": ("hard", 64, 2, 1e-3),
    "256 rows, 2 numbers": ("hard", 256, 2, 1e-3),
    "256 rows, 8 numbers": ("hard", 256, 8, 1e-3),
    "256 rows, 64 numbers": ("hard", 256, 64, 1e-3),
    "256 rows, 2 numbers, rate 1e-2": ("hard", 256, 2, 1e-2),
    "256 rows, 2 numbers, rate 1e-2, random": ("random", 256, 2, 1e-2),
}
"""How triplets are taken, rows of a batch, width, rate."""
SANITY = 0.9
"""The share of right nearest neighbours that 64 numbers must reach."""
CLAIMS = (
    Claim("batch", "with 2 numbers the mean distance falls from 16 rows to 256 (by .2)", size=0.2),
    Claim("loss", "with 2 numbers the loss rises from 16 rows to 256 (by .04)", size=0.04),
    Claim("width", "with 256 rows the mean distance grows from 2 numbers to 64 (by .4)", size=0.4),
    Claim(
        "collapse", "at 1e-2, 256 rows and 2 numbers the mean distance is below .05 (all rows are one point)",
        size=0.05, threshold=0.05, greater=False,
    ),
    Claim("random", "with triplets at random it is above .2 there", size=0.2, threshold=0.2, ours=True),
)  # fmt: skip


def run(scale: str, seed: int) -> Evidence:
    """Mean distance, loss and right neighbours of each arm."""
    rows: list[dict[str, Any]] = [{"arm": arm, **measure(*ARMS[arm], scale, seed)} for arm in ARMS]
    distance = {row["arm"]: row["mean distance"] for row in rows}
    loss = {row["arm"]: row["loss"] for row in rows}
    small, large, wide, fast, random = (
        distance[name]
        for name in (
            "16 rows, 2 numbers", "256 rows, 2 numbers", "256 rows, 64 numbers", "256 rows, 2 numbers, rate 1e-2",
            "256 rows, 2 numbers, rate 1e-2, random",
        )
    )  # fmt: skip
    if scale == "full":
        check_sane("right neighbours with 64 numbers", rows[4]["right neighbours"], SANITY)
    effects = {"batch": small - large, "loss": loss["256 rows, 2 numbers"] - loss["16 rows, 2 numbers"]}
    return Evidence(rows, effects | {"width": wide - large, "collapse": fast, "random": random})


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """All digits with pixels in [0, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    return x / 16, y


def random_triplets(z: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The mean hinge with a positive and a negative of each anchor at random."""
    same = labels.unsqueeze(1) == labels
    own = same & ~torch.eye(len(labels), dtype=torch.bool)
    if not bool(own.any(1).all() & (~same).any(1).all()):
        refuse("labels", "a positive and a negative of each row", labels)
    p = torch.multinomial(own.double(), 1, generator=generator).squeeze(1)
    n = torch.multinomial((~same).double(), 1, generator=generator).squeeze(1)
    near, far = ((z - z[i]).norm(dim=1) for i in (p, n))
    mean: Tensor = (near - far + MARGIN).relu().mean()
    return mean


def measure(mining: str, batch: int, width: int, rate: float, scale: str, seed: int) -> dict[str, float]:
    """What one training ends at."""
    full = scale == "full"
    dtype = torch.float32 if full else torch.float64
    x, x_test, y, y_test = train_test_split(*pixels(), train_size=1200, random_state=seed)
    inputs, labels = torch.as_tensor(x, dtype=dtype), torch.as_tensor(y)
    others = torch.as_tensor(x_test[:500], dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, width)).to(dtype)
    loss, steps = BatchHardTripletLoss(MARGIN), 300 if full else 4
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, foreach=True)
    generator = torch.Generator().manual_seed(seed + 1)
    values = []
    for _ in range(steps):
        index = torch.randperm(len(inputs), generator=generator)[:batch]
        z, target = network(inputs[index]), labels[index]
        value = loss(z, target) if mining == "hard" else random_triplets(z, target, generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    with torch.no_grad():
        z, z_test = network(inputs), network(others)
        nearest = torch.cdist(z_test, z, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        right = (labels[nearest] == torch.as_tensor(y_test[:500])).double().mean()
        distance = MARGIN * float(collapse_score(z_test, MARGIN))
    last = values[-30:]
    return {"mean distance": distance, "loss": sum(last) / len(last), "right neighbours": float(right)}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Mean distances by arm."""
    return bars_figure(evidence, y="mean distance")
