"""Losses by stressor: none wins everywhere, and the recommender names the winners.

Set-up of the claim: five cells, each with the losses of the catalogue that its task has, on the same small MLP:

- diabetes, targets as they are, and with 5% of the training targets raised by 5 to 10 deviations; root mean squared
  error on targets as they are (MSE, MAE, Huber, log-cosh);
- breast cancer, training rows thinned to one malignant for 50 benign; F1 of malignant at the threshold 1/2 on a test
  part that is not thinned (cross-entropy, cross-entropy weighted by 50, focal, hinge, squared hinge);
- digits, 1,000 training rows, as they are and with 30% of the labels replaced; accuracy (cross-entropy, smoothed,
  poly, generalised cross-entropy with q = 0.7, absolute error of probabilities).

The card gives no numbers; as sizes are taken 5% of the error, 5 points of F1, 5 points of accuracy under noise, half
a point when clean. Where it names two losses, such as Huber and MAE, their mean is compared, so that the better of two
is not chosen by luck. "The recommender must name the top two in each cell": of the two best losses of a cell it names
more than half on average (size: a quarter); ties go to the order of the catalogue.

The baselines are fair: in each cell every loss has the learning rate of :data:`GRID` with the best mean score on the
test rows of three seeds that are not reported (:func:`choose_rates`). Cross-entropy must reach 94% on the clean digits,
which every seed checks. (Before, all ran at 3e-3: under noise that is too fast for cross-entropy, and 11 of the 13
points that the robust losses gained there were its failure, as was the gain of F1 under imbalance.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import f1_score
from torch import Tensor

from ....core.objective import Objective
from ....losses.classification.losses_and_metrics_survey import loss_catalogue, recommend_loss
from ...classify import Arm, train
from ...data import built_in, digits, flip_labels
from ...experiment import Claim, Evidence
from ...settings import PILOTS, check_sane

SEEDS = 12
LOSSES = {
    "regression": ("mse", "mae", "huber", "log_cosh"),
    "binary": ("bce", "weighted_bce", "focal", "hinge", "squared_hinge"),
    "multiclass": (
        "sparse_cross_entropy",
        "smoothed_cross_entropy",
        "poly",
        "generalized_cross_entropy",
        "probability_mae",
    ),
}
ADVICE = {
    "diabetes": ("regression", None, None),
    "diabetes, outliers": ("regression", None, 0.05),
    "breast cancer 1:50": ("binary", 50.0, None),
    "digits": ("multiclass", None, None),
    "digits, noise": ("multiclass", None, 0.3),
}
GRID = (1e-3, 3e-3, 1e-2)
RATES = {
    "diabetes": dict.fromkeys(LOSSES["regression"], 1e-3),
    "diabetes, outliers": dict.fromkeys(LOSSES["regression"], 1e-3),
    "breast cancer 1:50": dict.fromkeys(LOSSES["binary"], 1e-2),
    "digits": {
        "sparse_cross_entropy": 1e-2,
        "smoothed_cross_entropy": 1e-2,
        "poly": 3e-3,
        "generalized_cross_entropy": 3e-3,
        "probability_mae": 3e-3,
    },
    "digits, noise": {**dict.fromkeys(LOSSES["multiclass"], 1e-3), "probability_mae": 3e-3},
}
"""The rate of each loss in each cell: what :func:`choose_rates` gives."""
SANITY = 94.0
CLAIMS = (
    Claim("outliers", "5% outliers: error of Huber and MAE below that of MSE (share of MSE's)", size=0.05),
    Claim("imbalance", "1:50: F1 of weighted and focal above that of cross-entropy (points)", size=5.0),
    Claim("noise", "30% noise: accuracy of absolute error and GCE above that of cross-entropy (points)", size=5.0),
    Claim(
        "clean",
        "clean digits: cross-entropy not below any other loss by 0.5 points",
        size=0.5,
        threshold=-0.5,
        ours=True,
    ),
    Claim(
        "advice",
        "the recommender names more than half of each cell's two best",
        size=0.25,
        threshold=0.5,
        ours=True,
    ),
)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class OfCatalogue(Objective):
    """A loss of the catalogue for outputs and targets."""

    name = "of_catalogue"
    tasks = ("binary", "multiclass", "regression")
    domain = "score"
    unit = "batch"

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss
        self.hyper = {"pos_weight": 50.0} if loss == "weighted_bce" else {}

    def forward(self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss."""
        return loss_catalogue()[self.loss].fn(outputs, target, **self.hyper)


def run(scale: str, seed: int) -> Evidence:
    """Score of every loss in every cell: higher is better."""
    epochs = 25 if scale == "full" else 1
    scores: dict[str, dict[str, float]] = {}
    for cell, data in cells(seed).items():
        task = ADVICE[cell][0]
        arms = [Arm(name, OfCatalogue, {"loss": name}, lr=RATES[cell][name]) for name in LOSSES[task]]
        train(arms, data, epochs=epochs, seed=seed, width=64)
        scores[cell] = {arm.label: score(task, arm.outputs.numpy(), data[3]) for arm in arms}
    if scale == "full":
        check_sane("accuracy of cross-entropy, clean digits", scores["digits"]["sparse_cross_entropy"], SANITY)
    effects = effects_of(scores)
    rows = [{"arm": f"{cell}: {name}", "score": value} for cell, own in scores.items() for name, value in own.items()]
    return Evidence(rows, effects)


def choose_rates() -> dict[str, dict[str, float]]:
    """The rate with the best mean score over the pilot seeds, for each cell and loss."""
    total: dict[tuple[str, str, float], float] = {}
    for seed in PILOTS:
        for cell, data in cells(seed).items():
            task = ADVICE[cell][0]
            options = [(name, rate) for name in LOSSES[task] for rate in GRID]
            arms = [Arm(name, OfCatalogue, {"loss": name}, lr=rate) for name, rate in options]
            train(arms, data, epochs=25, seed=seed, width=64)
            for (name, rate), arm in zip(options, arms):
                key = (cell, name, rate)
                total[key] = total.get(key, 0.0) + score(task, arm.outputs.numpy(), data[3])
    return {
        cell: {name: max(GRID, key=lambda rate, own=(cell, name): total[*own, rate]) for name in by_loss}
        for cell, by_loss in RATES.items()
    }


def effects_of(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """The numbers of the claims."""
    spiked, rare = scores["diabetes, outliers"], scores["breast cancer 1:50"]
    clean, noisy = scores["digits"], scores["digits, noise"]
    named = []
    for cell, (task, imbalance, outliers) in ADVICE.items():
        first = sorted(scores[cell], key=lambda name: -scores[cell][name])[:2]
        advised = [r.name for r in recommend_loss(task, imbalance, outliers) if r.name in scores[cell]][:2]
        named.append(len(set(first) & set(advised)) / 2)
    return {
        "outliers": 1 - (spiked["huber"] + spiked["mae"]) / 2 / spiked["mse"],  # scores are errors with a minus
        "imbalance": (rare["weighted_bce"] + rare["focal"]) / 2 - rare["bce"],
        "noise": (noisy["probability_mae"] + noisy["generalized_cross_entropy"]) / 2 - noisy["sparse_cross_entropy"],
        "clean": clean["sparse_cross_entropy"] - max(v for k, v in clean.items() if k != "sparse_cross_entropy"),
        "advice": float(np.mean(named)),
    }


def score(task: str, outputs: np.ndarray, y: np.ndarray) -> float:
    """Minus 100 RMSE, or F1 or accuracy in percent."""
    if task == "regression":
        return -100 * float(np.sqrt(np.mean((outputs - y) ** 2)))
    if task == "binary":
        return 100 * float(f1_score(y, outputs > 0, zero_division=0))
    return 100 * float((outputs.argmax(1) == y).mean())


def cells(seed: int) -> dict[str, Data]:
    """Training and test part of each cell."""
    rng = np.random.default_rng([seed, 17])
    x, y, x_test, y_test = built_in("diabetes", seed)
    mean, deviation = y.mean(), y.std()
    y, y_test = (y - mean) / deviation, (y_test - mean) / deviation
    spiked = y.copy()
    hit = rng.permutation(len(y))[: round(0.05 * len(y))]
    spiked[hit] += rng.uniform(5, 10, len(hit))
    data_sets: dict[str, Data] = {"diabetes": (x, y, x_test, y_test), "diabetes, outliers": (x, spiked, x_test, y_test)}
    x, y, x_test, y_test = built_in("breast_cancer", seed, train=0.6)
    benign = np.flatnonzero(y == 1)
    imbalanced = np.concatenate([benign, rng.permutation(np.flatnonzero(y == 0))[: max(1, round(len(benign) / 50))]])
    data_sets["breast cancer 1:50"] = (x[imbalanced], 1 - y[imbalanced], x_test, 1 - y_test)
    x, y, x_test, y_test = digits(seed, train=1000)
    data_sets["digits"] = (x, y, x_test, y_test)
    data_sets["digits, noise"] = (x, flip_labels(y, 0.3, seed)[0], x_test, y_test)
    return data_sets


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Scores by cell: a dot for each seed, a line at the mean."""
    panels = Figure(figsize=(6.8, 7.2), layout="constrained")
    unit = {"regression": "-100 RMSE", "binary": "F1 (%)", "multiclass": "accuracy (%)"}
    for axes, (cell, (task, _, _)) in zip(panels.subplots(len(ADVICE), 1), ADVICE.items()):
        for place, name in enumerate(LOSSES[task]):
            values = [row["score"] for of_seed in evidence for row in of_seed.rows if row["arm"] == f"{cell}: {name}"]
            axes.plot(values, [place] * len(values), "o", color="#0b5c94", alpha=0.4, markersize=4)
            axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
        axes.set_yticks(range(len(LOSSES[task])), [name.replace("_", " ") for name in LOSSES[task]], fontsize=7)
        axes.invert_yaxis()
        axes.set_title(cell, fontsize=8, loc="left")
        axes.set_xlabel(unit[task], fontsize=7)
        axes.tick_params(labelsize=7)
        axes.spines[["right", "top"]].set_visible(False)
    return panels
