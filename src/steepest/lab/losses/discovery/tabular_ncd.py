"""Three ways to find new classes in a table with the help of known ones, beside k-means and spectral clustering.

Set-up of the claim: the 1,797 digits of scikit-learn, 64 numbers in [0, 1], of which 900 drawn by the seed; five
classes drawn by the seed are known, five are to be found; clusters and classes are matched one to one. Arms: k-means
and spectral clustering of the new rows alone; k-means that knows the known means; spectral clustering of all rows; the
projection with k-means in its latent space (128 and 16 units, .1 dropout, AdamW at 3e-3, 30 epochs). The width of both
spectral arms (m in .6, the published one, and .01) and the projection's weight (w in .02, .2, 1) are chosen by
hidden classes: of the known ones two are hidden, in two folds. Spectral clustering without known classes embeds in as
many eigenvectors as clusters.

The publication's point is that the simple projection is best under such tuning; it gives several points over k-means,
five are taken as the size, and the same for the spectral arm. A first record had three as the size, ten seeds, 40
epochs and w = .8 among the weights; it could have found 6.5 and 9.5 and showed neither the projection's place nor the
number of classes. A second claim: the number of classes that the silhouette finds in
the latent space is within two of five: in more than half of the seeds, by .3.

Ours, the premise that known classes say what counts: a table of ten classes whose means differ in 8 features, beside 16
of three times the spread in which they don't. There the projection is ten points above k-means. It took the place of a
claim on digits (the projection at w = .8, not tuned) that pilots showed to be wrong by 10 and 18 points.

As the projection is not above k-means on digits, its loss, network and k-means were compared with the official code
(alike), and other sizes, rates, lengths and standardised features were tried on other seeds (32 of 33 settings below
k-means): digits are a table on which Euclidean distances between raw rows say more than known classes do.
k-means, the baseline, must reach 60%.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor

from ....core.clusterings import class_means, hungarian_accuracy
from ....losses.discovery.tabular_ncd import (
    FitPredict,
    HiddenClassCV,
    NCDKMeans,
    NCDSpectralClustering,
    ProjectionBasedNCD,
    estimate_num_classes,
)
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

SEEDS = 32
ROWS, CLASSES, NEW, K_MAX = 900, 10, 5, 12
KMEANS, SPECTRAL, NCD_KMEANS, NCD_SPECTRAL, PROJECTION = (
    "k-means", "spectral", "k-means with known means", "spectral with known rows", "projection",
)  # fmt: skip
WIDTHS, WEIGHTS = (0.6, 0.01), (0.02, 0.2, 1.0)
SANITY = 60.0
CLAIMS = (
    Claim("projection", "the projection is above k-means (five points)", size=5.0),
    Claim("spectral", "spectral clustering with known rows is above k-means (five points)", size=5.0),
    Claim("number", "within two of five classes are found in latent space (in .3 more than half of the seeds)",
          size=0.3, threshold=0.5),
    Claim("premise", "where known classes say which features count the projection is above k-means (ten points)",
          size=10.0, ours=True),
)  # fmt: skip


def table(seed: int, full: bool) -> tuple[Tensor, Tensor]:
    """Rows and classes, of which the first five are known."""
    rng = np.random.default_rng(seed)
    if full:
        x, y = load_digits(return_X_y=True)
        rows = rng.permutation(len(x))[:ROWS]
        x, y = x[rows] / 16.0, y[rows]
    else:
        y = np.arange(120) % CLASSES
        x = np.eye(CLASSES)[y] + 0.1 * rng.normal(size=(120, CLASSES))
    names = rng.permutation(CLASSES)
    return torch.as_tensor(x, dtype=torch.float32 if full else torch.float64), torch.as_tensor(np.argsort(names)[y])


def k_means(seed: int) -> FitPredict:
    """k-means of the new rows alone."""
    return lambda x_known, y_known, x, k: NCDKMeans(k, seed=seed).fit(x, x[:0]).labels


def k_means_apart(seed: int) -> FitPredict:
    """k-means that knows the means of known classes."""

    def cluster(x_known: Tensor, y_known: Tensor, x: Tensor, k: int) -> Tensor:
        classes, labels = y_known.unique(return_inverse=True)
        return NCDKMeans(k, seed=seed).fit(x, class_means(x_known, labels, len(classes))).labels

    return cluster


def spectral(width: float, seed: int) -> FitPredict:
    """Spectral clustering of the new rows alone."""
    return lambda x_known, y_known, x, k: NCDSpectralClustering(k, width, seed=seed).fit(x, x[:0], y_known[:0]).labels


def spectral_apart(width: float, seed: int) -> FitPredict:
    """Spectral clustering of all rows."""
    return lambda x_known, y_known, x, k: NCDSpectralClustering(k, width, seed=seed).fit(x, x_known, y_known).labels


def projected(w: float, seed: int, epochs: int) -> FitPredict:
    """k-means in the latent space."""

    def cluster(x_known: Tensor, y_known: Tensor, x: Tensor, k: int) -> Tensor:
        return network(w, seed, epochs).fit(x_known, y_known, x).predict(x, k)

    return cluster


def network(w: float, seed: int, epochs: int) -> ProjectionBasedNCD:
    """The projection of a weight."""
    return ProjectionBasedNCD((128,), 16, w, lr=3e-3, epochs=epochs, seed=seed)


def informative_table(seed: int, full: bool) -> tuple[Tensor, Tensor]:
    """Classes that differ in 8 of 24 features; the others have three times the spread."""
    generator = torch.Generator().manual_seed(seed)
    rows = ROWS if full else 120
    y = torch.randint(CLASSES, (rows,), generator=generator)
    means = 1.5 * torch.randn(CLASSES, 8, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, 24, generator=generator, dtype=torch.float64)
    x = torch.cat([x[:, :8] + means[y], 3 * x[:, 8:]], 1) / 3
    return (x.float() if full else x), y


def run(scale: str, seed: int) -> Evidence:
    """The accuracy of each arm on the new classes, in per cent."""
    full = scale == "full"
    epochs = 30 if full else 3
    tuning = HiddenClassCV(2, folds=2, seed=seed)
    rows: list[dict[str, Any]] = []
    accuracies: dict[tuple[str, str], float] = {}
    number = 0
    for name, (x, y) in (("digits", table(seed, full)), ("informative", informative_table(seed, full))):
        known = y < CLASSES - NEW
        data = x[known], y[known], x[~known]
        weight = tuning.best(WEIGHTS, lambda w: projected(w, seed, epochs), x[known], y[known])
        projection = network(weight, seed, epochs).fit(*data)
        arms: dict[str, tuple[FitPredict, float]] = {
            KMEANS: (k_means(seed), 0.0),
            NCD_KMEANS: (k_means_apart(seed), 0.0),
            PROJECTION: (lambda x_known, y_known, x, k, fitted=projection: fitted.predict(x, k), weight),
        }
        if name == "digits":
            for arm, method in ((SPECTRAL, spectral), (NCD_SPECTRAL, spectral_apart)):
                width = tuning.best(WIDTHS, lambda m, method=method: method(m, seed), x[known], y[known])
                arms[arm] = method(width, seed), width
            number = estimate_num_classes(projection.transform(x[~known]), K_MAX, seed)
        for arm, (cluster, setting) in arms.items():
            accuracies[name, arm] = 100 * hungarian_accuracy(cluster(*data, NEW), y[~known])
            rows.append({"table": name, "arm": arm, "setting": setting, "accuracy": accuracies[name, arm]})
    if full:
        check_sane("accuracy of k-means", accuracies["digits", KMEANS], SANITY)
    rows[2]["classes"] = number
    base = accuracies["digits", KMEANS]
    return Evidence(
        rows,
        {
            "projection": accuracies["digits", PROJECTION] - base,
            "spectral": accuracies["digits", NCD_SPECTRAL] - base,
            "number": float(abs(number - NEW) <= 2),
            "premise": accuracies["informative", PROJECTION] - accuracies["informative", KMEANS],
        },
    )


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy on the new classes of digits."""
    arms = [Evidence([row for row in one.rows if row["table"] == "digits"], one.effects) for one in evidence]
    return bars_figure(arms, y="accuracy")
