"""AnyLoss: training on a metric beats cross-entropy and squared error on that metric, above all under imbalance.

Set-up of the claim: breast_cancer and digits "is it 8?" with the positive class thinned to 5%, one hidden layer, the
F1 and the geometric-mean loss against binary cross-entropy and squared error (of the sigmoid), ten seeds. Expected:
test F1 up by 2 to 10 points, the geometric mean by more, accuracy about equal (within a point).

Half the negatives train, with as many positives as make 5%. All other positives are tested; they are weighted so that
they make 5% of the test part too, which leaves its metrics those of the thinned data and measures them more closely.
Every arm has the same initial weights, batches (256 rows, so that each holds positives), rate and number of epochs. A
gain is over the better of cross-entropy and squared error in the mean over both tables, in points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import accuracy_score, f1_score, recall_score

from ....losses.classification.anyloss import FBetaLoss, GMeanLoss
from ...classify import Arm, train
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...score_losses import ScoreLoss

SEEDS = 10
SHARE = 0.05
CLAIMS = (
    Claim(
        "f1",
        "training on F1 gains at least 2 points of test F1 over the better of cross-entropy and squared error (2 to 10 "
        "expected)",
        size=4.0,
        threshold=2.0,
    ),
    Claim(
        "gmean over f1",
        "training on the geometric mean gains more of it than training on F1 gains of F1",
        size=2.0,
    ),
    Claim(
        "accuracy",
        "accuracy is about equal: training on F1 loses less than 1 point to cross-entropy",
        size=1.0,
        threshold=-1.0,
    ),
)
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def run(scale: str, seed: int) -> Evidence:
    """F1, geometric mean and accuracy of four losses on two thinned tables."""
    full = scale == "full"
    rows = []
    for table, (x, y) in tables().items():
        *data, weights = thinned(x, y, seed)
        arms = [
            Arm("cross-entropy", ScoreLoss, {"kind": "logistic"}),
            Arm("squared error", ScoreLoss, {"kind": "squared"}),
            Arm("F1", FBetaLoss),
            Arm("geometric mean", GMeanLoss),
        ]
        train(arms, tuple(data), epochs=100 if full else 5, seed=seed, batch_size=256, width=64, depth=1)
        for arm in arms:
            assert arm.trained is not None
            scores = metrics(data[3], arm.trained.predict(arm.outputs).numpy(), weights)
            rows.append({"arm": f"{arm.label}, {table}", "loss": arm.label, "table": table, **scores})
    mean = {
        (loss, metric): float(np.mean([row[metric] for row in rows if row["loss"] == loss]))
        for loss in dict.fromkeys(row["loss"] for row in rows)
        for metric in ("F1", "geometric mean", "accuracy")
    }

    def gain(loss: str) -> float:
        return mean[loss, loss] - max(mean["cross-entropy", loss], mean["squared error", loss])

    effects = {
        "f1": gain("F1"),
        "gmean over f1": gain("geometric mean") - gain("F1"),
        "accuracy": mean["F1", "accuracy"] - mean["cross-entropy", "accuracy"],
    }
    return Evidence(rows, effects)


def tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and rare class: malignant tumours, and eights."""
    x, y = load_breast_cancer(return_X_y=True)
    digits, labels = load_digits(return_X_y=True)
    return {"breast_cancer": (x, 1 - y), "digits": (digits, (labels == 8).astype(np.int64))}


def thinned(
    x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test part with 5% positives, the latter by weights: ``(x, y, x_test, y_test, test weights)``."""
    rng = np.random.default_rng([seed, 5])
    negatives, positives = rng.permutation(np.flatnonzero(y == 0)), rng.permutation(np.flatnonzero(y == 1))
    half = len(negatives) // 2
    few = round(half * SHARE / (1 - SHARE))
    own = np.concatenate([negatives[:half], positives[:few]])
    held = np.concatenate([negatives[half:], positives[few:]])
    centre, scale = x[own].mean(0), x[own].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    heavy = SHARE / (1 - SHARE) * (len(negatives) - half) / (len(positives) - few)
    return (
        (x[own] - centre) / scale,
        y[own],
        (x[held] - centre) / scale,
        y[held],
        np.where(y[held] == 1, heavy, 1.0),
    )


def metrics(y: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Weighted F1, geometric mean of the recalls, accuracy, in percent."""
    recalls = recall_score(y, predicted, sample_weight=weights, average=None, labels=[0, 1])
    return {
        "F1": 100 * float(f1_score(y, predicted, sample_weight=weights, zero_division=0.0)),
        "geometric mean": 100 * float(np.sqrt(np.prod(recalls))),
        "accuracy": 100 * float(accuracy_score(y, predicted, sample_weight=weights)),
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """F1 by loss and table."""
    return bars_figure(evidence, y="F1")
