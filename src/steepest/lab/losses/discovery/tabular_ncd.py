"""Three ways to find new classes in a table with the help of known ones, beside k-means and spectral clustering.

Set-up of the claim: the 1,797 digits of scikit-learn, 64 numbers in [0, 1], of which 900 drawn by the seed; five classes
drawn by the seed are known, five are to be found; clusters and classes are matched one to one. Arms: k-means and spectral
clustering of the new rows alone; k-means that knows the known means; spectral clustering of all rows; the projection
with k-means in its latent space (64, 64 and 16 units, .1 dropout, AdamW at 1e-3, 50 epochs). The width of both spectral
arms (m in .6, .1, .01, 1e-4) and the projection's weight (w in .2, .5, .8) are chosen by hidden classes: of the known
ones two are hidden, in two folds; where there are no known classes the width is chosen by the same accuracies. Spectral
clustering without known classes embeds in as many eigenvectors as clusters.

The publication's point is that the simple projection is best under such tuning; it gives several points over k-means,
three are taken as the size, and the same for the spectral arm. A second claim: the number of classes that the
silhouette finds in the latent space is within two of five in nine of ten seeds. A third, ours: in the latent space the
projection is above k-means of the raw rows for any seed's choice of known classes, in the mean by as much where the
weight is not tuned but .8. k-means, the baseline, must reach 60%.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from ....core.clusterings import hungarian_accuracy
from ....losses.discovery.tabular_ncd import (
    FitPredict,
    HiddenClassCV,
    NCDKMeans,
    NCDSpectralClustering,
    ProjectionBasedNCD,
    class_means,
    estimate_num_classes,
)
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

SEEDS = 12
ROWS, CLASSES, NEW, K_MAX = 900, 10, 5, 12
KMEANS, SPECTRAL, NCD_KMEANS, NCD_SPECTRAL, PROJECTION = (
    "k-means", "spectral", "k-means with known means", "spectral with known rows", "projection",
)  # fmt: skip
WIDTHS, WEIGHTS = (0.6, 0.1, 0.01, 1e-4), (0.2, 0.5, 0.8)
SANITY = 60.0
CLAIMS = (
    Claim("projection", "the projection is above k-means (three points)", size=3.0),
    Claim("spectral", "spectral clustering with known rows is above k-means (three points)", size=3.0),
    Claim("number", "classes found in the latent space are within two of the truth (.4 of the seeds above half)",
          size=0.4, threshold=0.5),
    Claim("untuned", "the projection at the weight .8 is above k-means too (three points)", size=3.0, ours=True),
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
    return ProjectionBasedNCD((64, 64), 16, w, epochs=epochs, seed=seed)


def run(scale: str, seed: int) -> Evidence:
    """The accuracy of each arm on the new classes, in per cent."""
    full = scale == "full"
    x, y = table(seed, full)
    epochs = 50 if full else 3
    known = y < CLASSES - NEW
    data = x[known], y[known], x[~known]
    tuning = HiddenClassCV(2, folds=2, seed=seed)
    width = tuning.best(WIDTHS, lambda m: spectral(m, seed), x[known], y[known])
    width_apart = tuning.best(WIDTHS, lambda m: spectral_apart(m, seed), x[known], y[known])
    weight = tuning.best(WEIGHTS, lambda w: projected(w, seed, epochs), x[known], y[known])
    arms = {
        KMEANS: (k_means(seed), 0.0),
        SPECTRAL: (spectral(width, seed), width),
        NCD_KMEANS: (k_means_apart(seed), 0.0),
        NCD_SPECTRAL: (spectral_apart(width_apart, seed), width_apart),
        PROJECTION: (projected(weight, seed, epochs), weight),
        f"{PROJECTION}, w .8": (projected(0.8, seed, epochs), 0.8),
    }
    rows: list[dict[str, Any]] = [
        {"arm": arm, "setting": setting, "accuracy": 100 * hungarian_accuracy(cluster(*data, NEW), y[~known])}
        for arm, (cluster, setting) in arms.items()
    ]
    of = {row["arm"]: row["accuracy"] for row in rows}
    latent = network(weight, seed, epochs).fit(*data).transform(x[~known])
    number = estimate_num_classes(latent, K_MAX, seed)
    rows.append({"arm": "number of classes in the latent space", "setting": weight, "accuracy": float(number)})
    if full:
        check_sane("accuracy of k-means", of[KMEANS], SANITY)
    return Evidence(
        rows,
        {
            "projection": of[PROJECTION] - of[KMEANS],
            "spectral": of[NCD_SPECTRAL] - of[KMEANS],
            "number": float(abs(number - NEW) <= 2),
            "untuned": of[f"{PROJECTION}, w .8"] - of[KMEANS],
        },
    )


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy on the new classes."""
    arms = [Evidence([row for row in one.rows if not row["arm"].startswith("number")], one.effects) for one in evidence]
    return bars_figure(arms, y="accuracy")
