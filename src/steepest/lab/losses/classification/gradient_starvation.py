"""Gradient starvation: with a redundant easy feature, spectral decoupling (SD) keeps learning the hard one.

Three parts. The card's table of the linearised model, by plain gradient descent from random parameters.

Moons of 300 rows whose classes are moved apart until a line separates them with a gap of 0.2; one layer of 500
rectified units, 1,000 full-batch steps of Adam at 1e-2; cross-entropy, with weight decay 1e-3 and 1e-2, and SD (lambda
.1). Expected: cross-entropy's boundaries are nearly lines, SD's follows the moons, so the margin (distance to the
boundary) of held-out points without noise on the two arcs is larger. The card gives no numbers: "nearly" is read as a
line that agrees with the net on 95% of the plane around the data, "follows" as 5% more disagreement, and the margin as
the mean over the closest tenth of the arcs, with .1 more expected, half the gap. The better of the three counts as
cross-entropy's margin, the largest of their disagreements as their departure from a line.

Coloured digits: below 5 or not, 25% of the labels wrong as in the published benchmark, in two colours that agree with
the label in 90% and 80% of the two training halves and in 10% of the test. MNIST digits, pooled to 14 x 14, take the
place of Fashion-MNIST: 3,000 in each half, 1,000 to select, 3,000 to test; an MLP of 2 x 128, 20 epochs of Adam in
batches of 250. SD is switched on after half of the training. The comparison is fair: the rate (of three), SD's lambda
(.03, .3, 3) and the weight decay of the control (1e-4, 1e-3, 1e-2) are selected alike, the best accuracy in the worst
of the four groups of label and colour, on held-out rows coloured as in training, in the mean over two draws that are
not reported. Expected: cross-entropy at or below chance on the test (size 5 points), SD 5 points or more above
cross-entropy (size 5 more), with or without weight decay, whichever is better. Cross-entropy must be right on 75% of
the held-out rows, as each seed checks; the colour alone is on 85%.

That SD does not help with the colours was checked on one draw with cross-entropy at 22% on the test: lambda of .03 to
30 at the rate 1e-3 gives 18 to 11% (and 300, which fits 63% of the training rows, 44%), SD from the first step on 17
and 21%, and 80 epochs, after which 96 to 99% of the training rows are fitted, wrong labels included, 24 to 26%, 25%
without SD. What decides here is how far wrong labels are fitted by the digits, not how strong the colour is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.spatial import cKDTree
from sklearn.datasets import make_moons
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ....core.heads import ScalarHead
from ....descent.batches import epoch_order, seeded
from ....losses.classification.gradient_starvation import SpectralDecouplingLoss, gradient_starvation_experiment
from ....nn.networks import Network, mlp
from ...data import digits, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...settings import best_setting, check_sane
from ...tuning import UNREPORTED

SEEDS = 6
GAP = 0.2
RATES = (3e-4, 1e-3, 3e-3)
SANITY = 75.0
TABLE = {1: (2.2314, 0.5979), 2: (3.6529, 0.5349), 4: (5.3728, 0.3564), 8: (7.4571, 0.1678)}
CLAIMS = (
    Claim("table", "largest error of the table is below 1e-4", size=1e-4, threshold=1e-4, greater=False, ours=True),
    Claim(
        "line",
        "moons: a line agrees with cross-entropy's boundaries up to 5% of the plane",
        size=0.025,
        threshold=0.05,
        greater=False,
    ),
    Claim("curve", "moons: spectral decoupling departs more from a line (share of the plane)", size=0.05),
    Claim("margin", "moons: its margin on held-out points of the arcs is larger (.1 expected)", size=0.1),
    Claim(
        "chance",
        "colours: cross-entropy is not above chance on the test (accuracy)",
        size=5.0,
        threshold=50.0,
        greater=False,
    ),
    Claim("colours", "colours: spectral decoupling is 5 points or more above cross-entropy", size=5.0, threshold=5.0),
)
Row = dict[str, float | str]


def run(scale: str, seed: int) -> Evidence:
    """The table, the boundaries on moons, the accuracy where colours mislead."""
    full = scale == "full"
    curved = moons(seed, 1000 if full else 60)
    coloured = colours(mnist_10k() if full else _few(seed), seed, 20 if full else 2, selected() if full else MIDDLE)
    if full:
        check_sane("held-out accuracy of cross-entropy (%)", float(coloured[0]["accuracy as in training"]), SANITY)
    margin = {row["arm"]: float(row["margin"]) for row in curved}
    departure = {row["arm"]: float(row["departure from a line"]) for row in curved}
    test = {row["arm"]: float(row["accuracy"]) for row in coloured}
    own = "moons, decoupling"
    line = max(value for arm, value in departure.items() if arm != own)
    plain = max(test["colours, cross-entropy"], test["colours, weight decay"])
    effects = {
        "table": table_error(seed),
        "line": line,
        "curve": departure[own] - line,
        "margin": margin[own] - max(value for arm, value in margin.items() if arm != own),
        "chance": plain,
        "colours": test["colours, decoupling"] - plain,
    }
    return Evidence([*curved, *coloured], effects)


# ------------------------------------------------------------------------------------------------------- linear model


def table_error(seed: int, lam: float = 0.1, delta: float = 0.5) -> float:
    """Largest distance of the table from the end of gradient descent, and of the closed rest point from it."""
    c = math.sqrt(1 - delta * delta)
    u = torch.tensor([[c, -delta], [delta, c]], dtype=torch.float64)
    cases = [(s1, penalty) for s1 in TABLE for penalty in ("weight_decay", "decoupling")]
    card = [TABLE[s1] if penalty == "weight_decay" else TABLE[1] for s1, penalty in cases]
    s = torch.tensor([[s1, 1.0] for s1, _ in cases], dtype=torch.float64)
    # the penalty is on theta, or on z = s theta
    scale = torch.where(torch.tensor([[penalty == "weight_decay"] for _, penalty in cases]), 1.0, s.square())
    rate = 1.0 / (0.25 * s[:, :1].square() + lam * scale[:, :1])
    theta = torch.randn(len(cases), 2, generator=seeded(seed, 5), dtype=torch.float64)
    for _ in range(6000):
        margins = (s * theta) @ u.mT
        theta = theta - rate * (lam * scale * theta - s * (torch.sigmoid(-margins) @ u))
    z = s * theta
    rest = torch.stack([gradient_starvation_experiment(float(s1), delta, lam, penalty) for s1, penalty in cases])
    return max(float((z - torch.tensor(card, dtype=torch.float64)).abs().max()), float((z - rest).abs().max()))


# -------------------------------------------------------------------------------------------------------------- moons


def moons(seed: int, steps: int) -> list[Row]:
    """Margin of the arcs and departure from a line, for each loss."""
    points, y = make_moons(300, noise=0.05, random_state=seed)
    arcs, side = make_moons(400)
    for label, up in ((0, 1.0), (1, -1.0)):  # the line lies at height 0
        shift = GAP / 2 - (up * points[y == label, 1]).min()
        points[y == label, 1] += up * shift
        arcs[side == label, 1] += up * shift
    x, target = torch.as_tensor(points, dtype=torch.float32), torch.as_tensor(y)
    around = np.stack(np.meshgrid(np.arange(-2, 3, 0.02), np.arange(-2, 2, 0.02)), -1).reshape(-1, 2)
    rows: list[Row] = []
    for arm, lam, decay in (
        ("cross-entropy", 0.0, 0.0),
        ("weight decay 0.001", 0.0, 1e-3),
        ("weight decay 0.01", 0.0, 1e-2),
        ("decoupling", 0.1, 0.0),
    ):
        net = score_net(2, 500, 1, seed)
        optimizer, loss = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=decay), SpectralDecouplingLoss(lam)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(net(x), target).backward()
            optimizer.step()
        with torch.no_grad():
            there = (net(torch.as_tensor(around, dtype=torch.float32)) > 0).numpy().astype(int)
        rows.append(
            {
                "arm": f"moons, {arm}",
                "margin": arc_margin(around, there, arcs, side),
                "departure from a line": departure_from_line(around, there, points),
            }
        )
    return rows


def score_net(in_features: int, width: int, depth: int, seed: int) -> nn.Module:
    """An MLP that gives one score."""
    torch.manual_seed(seed)
    return Network(mlp(in_features, width=width, depth=depth), ScalarHead(width))


def arc_margin(around: np.ndarray, there: np.ndarray, arcs: np.ndarray, side: np.ndarray) -> float:
    """Mean distance of the closest tenth of the arcs from the other class's region, at most 2; negative where wrong."""
    distance = np.full((2, len(arcs)), 2.0)
    for label in (0, 1):
        if (there == label).any():
            distance[label] = cKDTree(around[there == label]).query(arcs)[0].clip(max=2.0)
    rows = np.arange(len(arcs))
    to_own, to_other = distance[side, rows], distance[1 - side, rows]
    signed = np.where(to_other < to_own, -to_own, to_other)
    return float(np.sort(signed)[: len(arcs) // 10].mean())


def departure_from_line(around: np.ndarray, there: np.ndarray, points: np.ndarray) -> float:
    """Share of the box around the data where the net and the line nearest to it disagree."""
    inside = ((around >= points.min(0)) & (around <= points.max(0))).all(1)
    x, label = around[inside], there[inside]
    if label.min() == label.max():
        return 0.0
    return float((LogisticRegression(C=1e3, max_iter=1000).fit(x, label).predict(x) != label).mean())


# ------------------------------------------------------------------------------------------------------------ colours


def _few(seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y, _, _ = digits(seed, train=1000)
    return x, y


@dataclass(frozen=True)
class Setting:
    """Of one training on coloured digits."""

    rate: float
    decoupling: float = 0.0
    decay: float = 0.0


GRID = {
    "cross-entropy": [Setting(rate) for rate in RATES],
    "weight decay": [Setting(rate, decay=decay) for rate in RATES for decay in (1e-4, 1e-3, 1e-2)],
    "decoupling": [Setting(rate, decoupling=lam) for rate in RATES for lam in (0.03, 0.3, 3.0)],
}
MIDDLE = {arm: settings[len(settings) // 2] for arm, settings in GRID.items()}


@cache
def selected() -> dict[str, Setting]:
    """The setting of each arm that is best in the worst group, on draws that are not reported."""
    draws = [Coloured(mnist_10k(), UNREPORTED + number) for number in range(2)]

    def worst_group(setting: Setting, pilot: int) -> float:
        drawn = draws[pilot]
        held = drawn.part == 6
        right = drawn.right(setting, 20)[held]
        groups = (2 * drawn.label + drawn.colour)[held]
        return min(float(right[groups == group].mean()) for group in np.unique(groups))

    return {arm: best_setting(settings, worst_group, range(2)) for arm, settings in GRID.items()}


class Coloured:
    """One draw of wrong labels and colours.

    Tenths: three coloured at 90%, three at 80%, one to select of both, three that mislead.
    """

    def __init__(self, digits: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        x, y = digits
        rng = np.random.default_rng([seed, 11])
        order = rng.permutation(len(x))
        x = halved(x)[order]
        self.seed = seed
        self.label = (y[order] < 5).astype(np.int64) ^ (rng.random(len(x)) < 0.25)
        self.part = np.arange(len(x)) * 10 // len(x)
        agree = np.choose(self.part, [0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.85, 0.1, 0.1, 0.1])
        self.colour = self.label ^ (rng.random(len(x)) >= agree)
        both = np.concatenate([x * (self.colour == 0)[:, None], x * (self.colour == 1)[:, None]], 1)
        self.inputs = torch.as_tensor(both, dtype=torch.float32)

    def right(self, setting: Setting, epochs: int) -> np.ndarray:
        """Which rows are right after training on the first six tenths."""
        scores = _fit(self.inputs, torch.as_tensor(self.label), self.part < 6, setting, self.seed, epochs)
        return np.asarray((scores > 0).numpy() == self.label)


def colours(
    digits: tuple[np.ndarray, np.ndarray], seed: int, epochs: int, settings: Mapping[str, Setting]
) -> list[Row]:
    """Test accuracy of each loss."""
    drawn = Coloured(digits, seed)
    rows: list[Row] = []
    for arm, setting in settings.items():
        right = drawn.right(setting, epochs)
        rows.append(
            {
                "arm": f"colours, {arm}",
                "accuracy": 100 * float(right[drawn.part > 6].mean()),
                "accuracy as in training": 100 * float(right[drawn.part == 6].mean()),
                "rate": setting.rate,
                "strength": setting.decoupling + setting.decay,
            }
        )
    return rows


def _fit(inputs: Tensor, target: Tensor, train: np.ndarray, setting: Setting, seed: int, epochs: int) -> Tensor:
    """Scores of all rows after training on some, decoupled in the second half of the epochs."""
    x, y = inputs[torch.as_tensor(train)], target[torch.as_tensor(train)]
    net = score_net(x.shape[1], 128, 2, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=setting.rate, weight_decay=setting.decay)
    early, late = SpectralDecouplingLoss(0.0), SpectralDecouplingLoss(setting.decoupling)
    for epoch in range(epochs):
        loss = late if 2 * epoch >= epochs else early
        for index in epoch_order(len(x), 250, -(-len(x) // 250), seeded(seed, epoch), y):
            optimizer.zero_grad()
            loss(net(x[index]), y[index]).backward()
            optimizer.step()
    with torch.no_grad():
        scores: Tensor = net(inputs)
    return scores


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Margin on the moons, and test accuracy where the colours mislead."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    rows = [row for of_seed in evidence for row in of_seed.rows]
    for axes, key in zip(figure.subplots(2, 1, height_ratios=(4, 3)), ("margin", "accuracy")):
        arms = list(dict.fromkeys(str(row["arm"]) for row in rows if key in row))
        for place, arm in enumerate(arms):
            values = [row[key] for row in rows if row["arm"] == arm]
            axes.plot(values, [place] * len(values), "o", color="#0b5c94", alpha=0.4, markersize=4)
            axes.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()
        axes.set_xlabel(key)
        axes.spines[["right", "top"]].set_visible(False)
    return figure
