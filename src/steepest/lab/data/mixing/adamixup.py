"""AdaMixUp: where mixtures fall on real data of another class, learned intervals beat mixup's fixed law.

Two set-ups, each with no mixing, mixup (alpha 1, a coefficient for each pair as in the authors' code) and AdaMixUp:

- images: a small CNN on 300 MNIST digits at 14 x 14 pixels (card: digits or Fashion-MNIST), tested on 9,700 others; the
  policy has the same architecture. Equal batches of 60 and equal steps: AdaMixUp's half of a batch that only the
  discriminator sees is part of its price. The card's "a few percent relative" is 5% of mixup's error. Before, they were
  scikit-learn's digits with 1,497 to test on, where the error of a seed said little.
- plane: three clusters on a line, A at -1, B at 0, A' at 1, standard deviation 0.2; A and A' are one class, so the
  mixtures of A with A' fall on B with the wrong label. 45% of the 400 rows are A, 45% A', 10% B: with even shares
  mixtures of B with itself outweigh the intruders at 0. Accuracy on 500 fresh rows of B; a drop or rise counts from 5
  points on. "Avoids 1/2": the interval of at most half of the A-A' pairs of the training rows contains 1/2 (size: a
  quarter of the pairs away from that).

The baselines are fair: AdamW with weight decay 1e-4 as in the paper, and for each arm the best of three rates over
seeds that are not reported (:func:`choose_rates`), by accuracy, in the plane in the mean over the three clusters. No
mixing must reach 75% on the images and 80% on B, which every seed checks.

That AdaMixUp falls behind on B was looked into: the policy sees its pair through noise that changes the signs of the
coordinates, as in the authors' code, so in the plane it can hardly tell one pair from another, and settles on one
interval for all: on no mixing, and B is as without; or on all of (0, 1), and B is lost. With 160 epochs it still
ended there in three of six seeds at 0.003 and in one of six at 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
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
from ...data import digits, halved, mnist_10k, split
from ...experiment import Claim, Evidence
from ...settings import best_setting, check_sane
from ...tuning import UNREPORTED

SEEDS = 36
EPOCHS = {"images": 24, "plane": 32}
ARMS = ("none", "mixup", "AdaMixUp")
GRID = (1e-3, 3e-3, 1e-2)
RATES = {
    "images": {"none": 1e-2, "mixup": 1e-2, "AdaMixUp": 3e-3},
    "plane": {"none": 1e-2, "mixup": 1e-3, "AdaMixUp": 1e-2},
}
"""Of each arm: what :func:`choose_rates` gives."""
PILOTS = (UNREPORTED, UNREPORTED + 1)
SANITY = {"images": 75.0, "plane": 80.0}
"""Accuracy in percent that the arm without mixing must reach, in the plane on B."""
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
    full = scale == "full"
    error, on_b, inside = {}, {}, 0.5
    for arm in ARMS:
        error[arm] = 100 - images(arm, RATES["images"][arm], seed, full)
        (_, on_b[arm], _), method = plane(arm, RATES["plane"][arm], seed, full)
        if isinstance(method, AdaMixUp):
            points, _ = clusters((180, 40, 180), seed, dtype_of(full))
            with torch.no_grad():
                a, b = method.policy(points[:180], points[220:])
            inside = float(((a < 0.5) & (a + b > 0.5)).float().mean())
    if full:
        check_sane("accuracy on images without mixing", 100 - error["none"], SANITY["images"])
        check_sane("accuracy on B without mixing", on_b["none"], SANITY["plane"])
    rows = [{"arm": arm, "error on digits": error[arm], "accuracy on B": on_b[arm]} for arm in ARMS]
    effects = {
        "images": 1 - error["AdaMixUp"] / error["mixup"],
        "drop": on_b["none"] - on_b["mixup"],
        "kept": on_b["AdaMixUp"] - on_b["none"],
        "avoids": inside,
    }
    return Evidence(rows, effects)


def choose_rates() -> dict[str, dict[str, float]]:
    """The rate of each arm with the best mean accuracy over the pilots, for both set-ups."""
    scores: dict[str, Callable[[str, float, int], float]] = {
        "images": lambda arm, rate, seed: images(arm, rate, seed, True),
        "plane": lambda arm, rate, seed: float(np.mean(plane(arm, rate, seed, True)[0])),
    }
    return {setup: {arm: best_setting(GRID, partial(of, arm), PILOTS) for arm in ARMS} for setup, of in scores.items()}


def dtype_of(full: bool) -> torch.dtype:
    """Double precision at smoke scale, whose rows are compared between machines."""
    return torch.float32 if full else torch.float64


def images(arm: str, rate: float, seed: int, full: bool) -> float:
    """Accuracy in percent on digits that were not trained on."""
    data = split(*small_mnist(), seed, train=300) if full else digits(seed, train=300)
    x, x_test = (torch.as_tensor(data[place], dtype=dtype_of(full)) for place in (0, 2))
    y, wanted = (torch.as_tensor(data[place], dtype=torch.long) for place in (1, 3))
    model, _ = train(
        arm, x, y, lambda: small_cnn(x.shape[1]), 64, epochs_of("images", full), batch_size=60, seed=seed, rate=rate
    )
    return accuracy(model, x_test, wanted)


@cache
def small_mnist() -> tuple[np.ndarray, np.ndarray]:
    """The MNIST digits at 14 x 14 pixels, and their labels."""
    pictures, labels = mnist_10k()
    return halved(pictures), labels


def plane(arm: str, rate: float, seed: int, full: bool) -> tuple[list[float], Method]:
    """Accuracy in percent on fresh rows of A, B and A', and the method that was trained."""
    points, classes = clusters((180, 40, 180), seed, dtype_of(full))
    model, method = train(
        arm,
        points,
        classes,
        lambda: mlp(2, width=32),
        32,
        epochs_of("plane", full),
        batch_size=40,
        seed=seed,
        rate=rate,
    )
    fresh, wanted = clusters((500, 500, 500), seed + 2 * UNREPORTED, dtype_of(full))
    return [accuracy(model, x, y) for x, y in zip(fresh.split(500), wanted.split(500))], method


def epochs_of(setup: str, full: bool) -> int:
    """Of every arm."""
    return EPOCHS[setup] if full else 2


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of rows that are right, in percent."""
    return 100 * float((model(x).argmax(1) == y).double().mean())


def clusters(sizes: tuple[int, int, int], seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A, B and A' of these sizes in the plane, in this order; A and A' are class 0, B is class 1."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.repeat_interleave(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(sizes))
    points = 0.2 * torch.randn(len(place), 2, generator=generator)
    points[:, 0] += place
    return points.to(dtype), (place == 0).long()


def train(
    arm: str,
    x: Tensor,
    y: Tensor,
    body: Callable[[], nn.Module],
    feature_dim: int,
    epochs: int,
    *,
    batch_size: int,
    seed: int,
    rate: float,
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
    model, method = model.to(x.dtype), method.to(x.dtype)
    batches = ArrayBatches(x, y, batch_size=batch_size, seed=seed)
    parameters = [*model.parameters(), *method.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, fused=True)
    Descent(model, CrossEntropyLoss(), batches, method=method, optimizer=optimizer).fit(epochs)
    return model.eval(), method.eval()


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Error on digits and accuracy on B: a dot for each seed, a line at the mean."""
    panels = Figure(figsize=(6.4, 2.2), layout="constrained")
    for axes, key in zip(panels.subplots(1, 2, sharey=True), ("error on digits", "accuracy on B")):
        for place, arm in enumerate(ARMS):
            values = [row[key] for of_seed in evidence for row in of_seed.rows if row["arm"] == arm]
            axes.plot(values, [place] * len(values), "o", color="#0b5c94", alpha=0.3, markersize=4)
            axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
        axes.set_xlabel(f"{key} (%)")
        axes.spines[["right", "top"]].set_visible(False)
        axes.set_yticks(range(len(ARMS)), ARMS)
    panels.axes[0].invert_yaxis()
    return panels
