"""Prediction error by the bootstrap: the .632 and the .632+ estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...core.arrays import labels, numbers
from ...core.checks import check_number
from .fitting import as_fit, derived_seed, predictions, rows_and_targets
from .looks import ALPHA
from .results import BootstrapError

Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]


def zero_one(y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 where wrong, 0 where right, elementwise.

    >>> zero_one(np.array([0, 1]), np.array([0, 0])).tolist()
    [0.0, 1.0]
    """
    y = labels("y", y)
    return (y != labels("predicted", predicted, like=y)).astype(np.float64)


def point_632(resubstitution: float, out_of_bag: float) -> float:
    """.632 estimate of one round: 0.368 resub + 0.632 oob.

    >>> round(point_632(0.10, 0.25), 4)
    0.1948
    """
    check_number("resubstitution", resubstitution)
    check_number("out_of_bag", out_of_bag)
    return 0.368 * resubstitution + 0.632 * out_of_bag


def point_632_plus(resubstitution: float, out_of_bag: float, no_information: float) -> float:
    """.632+ estimate of one round, which leans on the out-of-bag error as the learner overfits.

        R = (oob - resub) / (gamma - resub), clipped to [0, 1];  w = 0.632 / (1 - 0.368 R)
        err = (1 - w) resub + w oob

    Args:
        resubstitution: error on the rows at hand.
        out_of_bag: error on the rows left out.
        no_information: gamma, the error if targets and predictions were unrelated.

    >>> round(point_632_plus(0.10, 0.25, 0.5), 6)
    0.209977
    """
    for name, value in (
        ("resubstitution", resubstitution), ("out_of_bag", out_of_bag), ("no_information", no_information)
    ):  # fmt: skip
        check_number(name, value)
    overfit, room = out_of_bag - resubstitution, no_information - resubstitution
    rate = min(overfit / room, 1.0) if overfit > 0 and room > 0 else 0.0
    weight = 0.632 / (1 - 0.368 * rate)
    return (1 - weight) * resubstitution + weight * out_of_bag


def no_information_error(y: np.ndarray, predicted: np.ndarray, loss: Loss = zero_one) -> float:
    """gamma: the mean loss over all pairs of a target and a prediction.

        gamma = mean_{i, j} loss(y_i, predicted_j)

    >>> no_information_error(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    0.5
    """
    y = labels("y", y)
    predicted = labels("predicted", predicted, like=y)
    targets, target_counts = np.unique(y, return_counts=True)
    outputs, output_counts = np.unique(predicted, return_counts=True)
    rows = (
        numbers("loss", loss(np.full(len(outputs), target), outputs), outputs.shape) @ output_counts
        for target in targets
    )
    total = sum(count * row for count, row in zip(target_counts, rows))
    return float(total / (len(y) * len(predicted)))


def bootstrap_splits(n: int, n_splits: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows drawn with replacement, and the rows never drawn; a draw that leaves nothing out is drawn again.

    >>> drawn, left = next(bootstrap_splits(100, 1, seed=0))
    >>> len(drawn), set(drawn) & set(left)
    (100, set())
    """
    check_number("number of rows", n, low=2, integer=True)
    check_number("n_splits", n_splits, low=1, integer=True)
    for split in range(n_splits):
        generator = np.random.default_rng([seed, split])
        left = np.empty(0, dtype=np.int64)
        while not len(left):
            drawn = generator.integers(n, size=n)
            left = np.setdiff1d(np.arange(n), drawn)
        yield drawn, left


def bootstrap_632(
    fit: Any, X: np.ndarray, y: np.ndarray, n_splits: int = 200, seed: int = 0, *, loss: Loss = zero_one
) -> BootstrapError:
    """.632 bootstrap estimate of a learner's prediction error.

        err = mean_b (0.368 resub_b + 0.632 oob_b)

    Args:
        fit: ``fit(X, y, seed) -> predict`` or a scikit-learn estimator; fitted ``n_splits`` times.
        X: [N, ...] inputs.
        y: [N] targets.
        n_splits: rounds b; resub_b is the error of the round's fit on all N rows, oob_b on the rows it did not draw.
        seed: of the draws and the learner, at least 0.
        loss: elementwise ``loss(y, predicted) -> [N]``.

    Returns:
        The mean over rounds with its 2.5% and 97.5% percentiles.

    Raises:
        ValueError: lengths differ, fewer than two rows, no round.

    >>> from sklearn.dummy import DummyClassifier
    >>> round(bootstrap_632(DummyClassifier(), np.zeros((10, 1)), np.arange(10) // 8, n_splits=20).error, 2)
    0.18

    Source: Efron 1983; arXiv:1811.12808.
    """
    return _rounds(fit, X, y, n_splits, seed, loss, lambda resub, oob, y, predicted: point_632(resub, oob))


def bootstrap_632_plus(
    fit: Any, X: np.ndarray, y: np.ndarray, n_splits: int = 200, seed: int = 0, *, loss: Loss = zero_one
) -> BootstrapError:
    """.632+ bootstrap estimate of a learner's prediction error; arguments as :func:`bootstrap_632`.

    The weight of :func:`point_632_plus` is found anew in each round.

    >>> from sklearn.tree import DecisionTreeClassifier
    >>> X, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    >>> tree = DecisionTreeClassifier()
    >>> bootstrap_632(tree, X, y, 20).error < bootstrap_632_plus(tree, X, y, 20).error
    True

    Source: Efron and Tibshirani, "Improvements on Cross-Validation: The .632+ Bootstrap Method", 1997;
    arXiv:1811.12808.
    """

    def estimate(resub: float, oob: float, y: np.ndarray, predicted: np.ndarray) -> float:
        return point_632_plus(resub, oob, no_information_error(y, predicted, loss))

    return _rounds(fit, X, y, n_splits, seed, loss, estimate)


def _rounds(
    learner: Any,
    X: np.ndarray,
    y: np.ndarray,
    n_splits: int,
    seed: int,
    loss: Loss,
    estimate: Callable[[float, float, np.ndarray, np.ndarray], float],
) -> BootstrapError:
    X, y = rows_and_targets(X, y)
    check_number("seed", seed, low=0, integer=True)
    fit = as_fit(learner)
    rounds = []
    for split, (drawn, left) in enumerate(bootstrap_splits(len(y), n_splits, seed)):
        predicted = predictions(fit(X[drawn], y[drawn], derived_seed(seed, split, 1)), X)
        losses = numbers("loss", loss(y, predicted), y.shape)
        rounds.append(estimate(float(losses.mean()), float(losses[left].mean()), y, predicted))
    low, high = np.quantile(rounds, [ALPHA / 2, 1 - ALPHA / 2])
    return BootstrapError(float(np.mean(rounds)), float(low), float(high), tuple(rounds))
