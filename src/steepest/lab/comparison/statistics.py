"""Tests of two learners: resampled t-tests raise false alarms; 5x2cv and McNemar do not. .632+ has little bias.

Set-up of the claim: many small samples from a known generator, two learners that are equally good, tests at 0.05. The
generator draws two classes of Gaussian features in two independent blocks of equal law; learner A sees the first block,
learner B the second, both assign the nearest class mean. Exchanging the blocks exchanges the learners, so their
expected accuracies are equal exactly. Expected: the plain t-test over 30 random splits rejects well above 10%, the
combined 5x2cv F-test and McNemar's test (on one held-out third) at or below about 5%, for which 6% is taken. The
corrected resampled t-test and the 5x2cv t-test are reported beside them.

Bias of an error estimate is against the error of the learner (three nearest neighbours) on 2,000 further rows; .632+
takes 50 rounds. A seed is 500 samples, and 60 for the bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ...comparison.statistics import (
    bootstrap_632_plus,
    combined_f_5x2,
    corrected_resampled_ttest,
    five_by_two_differences,
    mcnemar_test,
    paired_t_5x2,
)
from ...comparison.statistics.fitting import Fit, Predict
from ..experiment import Claim, Evidence
from ..figures import bars_figure

SEEDS = 18
LEVEL = 0.05
ROWS, SPLITS, BLOCK = 150, 30, 4
CLAIMS = (
    Claim(
        "resampled t",
        "the resampled t-test rejects equal learners in more than 10% of samples at level 5%",
        size=0.1,
        threshold=0.1,
    ),
    Claim("5x2cv F", "the combined 5x2cv F-test rejects in at most 6%", size=0.01, threshold=0.06, greater=False),
    Claim("McNemar", "McNemar's test rejects in at most 6%", size=0.01, threshold=0.06, greater=False),
    Claim("less bias", ".632+ is less biased than resubstitution (error, absolute bias)", size=0.01),
)


def run(scale: str, seed: int) -> Evidence:
    """Share of rejections of five tests, and the bias of two error estimates."""
    full = scale == "full"
    samples, estimates = (500, 60) if full else (15, 3)
    pvalues: dict[str, list[float]] = {
        name: [] for name in ("resampled t", "corrected resampled t", "5x2cv t", "5x2cv F", "McNemar")
    }
    for sample in range(samples):
        rng = np.random.default_rng([seed, 1, sample])
        x, y = draw(rng, ROWS)
        differences, alarms = splits(x, y, rng)
        pvalues["resampled t"].append(plain_t(differences))
        pvalues["corrected resampled t"].append(corrected_resampled_ttest(differences, test_fraction=1 / 3).pvalue)
        pvalues["McNemar"].append(alarms)
        folds = five_by_two_differences(seeing(0), seeing(BLOCK), x, y, accuracy, seed=sample)
        # differences that repeat exactly cannot be tested; the test then rejects nothing
        spread = bool((folds[:, 0] != folds[:, 1]).any())
        pvalues["5x2cv t"].append(paired_t_5x2(folds).pvalue if spread else 1.0)
        pvalues["5x2cv F"].append(combined_f_5x2(folds).pvalue if spread else 1.0)
    rejected = {name: float(np.mean(np.array(values) <= LEVEL)) for name, values in pvalues.items()}
    bias = biases(seed, estimates)
    rows: list[dict[str, float | str]] = [{"arm": name, "rejected": share} for name, share in rejected.items()]
    rows += [{"arm": name, "bias": value} for name, value in bias.items()]
    effects = {
        **{name: rejected[name] for name in ("resampled t", "5x2cv F", "McNemar")},
        "less bias": abs(bias["resubstitution"]) - abs(bias[".632+"]),
    }
    return Evidence(rows, effects)


def draw(rng: np.random.Generator, rows: int, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Two balanced classes, ``2 * BLOCK`` unit Gaussian features; the first of each block has means -+ ``shift``."""
    y = np.arange(rows) % 2
    x = rng.normal(size=(rows, 2 * BLOCK))
    x[:, [0, BLOCK]] += shift * (2 * y - 1)[:, None]
    return x, y


def seeing(first: int) -> Fit:
    """Nearest class mean on the block of features that begins at ``first``."""

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Predict:
        own = x[:, first : first + BLOCK]
        means = np.stack([own[y == label].mean(0) for label in (0, 1)])
        weights, middle = means[1] - means[0], means.mean(0)
        return lambda other: ((other[:, first : first + BLOCK] - middle) @ weights > 0).astype(np.int64)

    return fit


def accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """Share that is right."""
    return float((y == predicted).mean())


def splits(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Accuracy differences over random splits with a third held out, and McNemar's p on the first of them."""
    differences = np.empty(SPLITS)
    pvalue = 1.0
    for split in range(SPLITS):
        order = rng.permutation(len(y))
        test, train = order[: len(y) // 3], order[len(y) // 3 :]
        first, second = (seeing(block)(x[train], y[train], 0)(x[test]) for block in (0, BLOCK))
        differences[split] = accuracy(y[test], first) - accuracy(y[test], second)
        if split == 0:
            pvalue = mcnemar_test(y[test], first, second).pvalue
    return differences, pvalue


def plain_t(differences: np.ndarray) -> float:
    """p of the t-test that takes overlapping splits for independent ones."""
    return float(stats.ttest_1samp(differences, 0.0).pvalue) if np.ptp(differences) else 1.0


def neighbours(x: np.ndarray, y: np.ndarray, seed: int) -> Predict:
    """Three nearest neighbours."""

    def predict(other: np.ndarray) -> np.ndarray:
        squares = (other**2).sum(1)[:, None] - 2 * other @ x.T + (x**2).sum(1)
        near = np.argpartition(squares, 3, axis=1)[:, :3]
        return (y[near].mean(1) > 0.5).astype(np.int64)

    return predict


def biases(seed: int, samples: int) -> dict[str, float]:
    """Mean of estimate less true error, for resubstitution and .632+."""
    errors: dict[str, list[float]] = {"resubstitution": [], ".632+": []}
    for sample in range(samples):
        rng = np.random.default_rng([seed, 2, sample])
        x, y = draw(rng, 60)
        x_new, y_new = draw(rng, 2000)
        predict = neighbours(x, y, 0)
        truth = 1 - accuracy(y_new, predict(x_new))
        errors["resubstitution"].append(1 - accuracy(y, predict(x)) - truth)
        errors[".632+"].append(bootstrap_632_plus(neighbours, x, y, n_splits=50, seed=sample).error - truth)
    return {name: float(np.mean(values)) for name, values in errors.items()}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Share of false alarms by test, with the level."""
    selected = [Evidence([row for row in of_seed.rows if "rejected" in row], of_seed.effects) for of_seed in evidence]
    drawn = bars_figure(selected, y="rejected")
    drawn.axes[0].axvline(LEVEL, color="#9c3f06", linewidth=1)
    drawn.axes[0].set_xlim(left=0.0)
    return drawn
