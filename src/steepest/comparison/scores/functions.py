"""The values behind the metrics: functions of targets, an outcome and row weights; None where there is no value."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .operating_point import bin_sums
from .outcome import Outcome

Function = Callable[[np.ndarray, Outcome, "np.ndarray | None"], "float | None"]


@contextmanager
def _fast_sklearn() -> Iterator[Any]:
    """scikit-learn's metrics without their validation and their warnings."""
    import sklearn
    import sklearn.metrics

    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.exceptions.UndefinedMetricWarning)
        warnings.simplefilter("ignore", UserWarning)  # a predicted class that y lacks
        yield sklearn.metrics


def accuracy(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
    """Share of rows predicted right."""
    return np.average(outcome.predicted == y, weights=weights)


# The label metrics and the unweighted AUROC are a few counts and ranks here: scikit-learn's checks take 2 to 25 ms a
# call, and selection calls its metric after every epoch. The tests hold them to scikit-learn's values.


def _masses(y: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Weight of each class in y, in the predictions, and where both agree."""
    size = int(max(y.max(), predicted.max())) + 1
    weights = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    agreed = np.bincount(y, weights * (y == predicted), minlength=size)
    return np.bincount(y, weights, minlength=size), np.bincount(predicted, weights, minlength=size), agreed


def _share(count: np.ndarray, total: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where the whole is 0: scikit-learn's ``zero_division=0``."""
    return np.divide(count, total, out=np.zeros(len(count)), where=total > 0)


def _rates(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Precision, recall and F1 of each class, and which classes are in y or predicted."""
    said = outcome.predicted.astype(np.int64)
    actual, predicted, agreed = _masses(y, said, weights)
    here = np.zeros(len(actual), dtype=bool)
    here[y] = here[said] = True
    return _share(agreed, predicted), _share(agreed, actual), _share(2 * agreed, actual + predicted), here


def _of_positive(which: int) -> Function:
    def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
        rates = _rates(y, outcome, weights)[which]
        return rates[1] if len(rates) > 1 else 0.0

    return function


def _over_classes(which: int) -> Function:
    def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
        *rates, here = _rates(y, outcome, weights)
        return np.mean(rates[which][here])

    return function


precision, recall, f1 = map(_of_positive, range(3))
"""Of class 1: TP / (TP + FP), TP / (TP + FN), 2 TP / (2 TP + FP + FN)."""
macro_precision, macro_recall, macro_f1 = map(_over_classes, range(3))
"""Their means over the classes in y or predicted."""


def balanced_accuracy(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
    """Mean recall over the classes in y."""
    actual, _, agreed = _masses(y, outcome.predicted, weights)
    present = actual > 0
    return np.mean(agreed[present] / actual[present])


def g_mean(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
    """Geometric mean of the recalls of the classes in y or predicted."""
    _, recalls, _, here = _rates(y, outcome, weights)
    return np.prod(recalls[here] ** (1 / here.sum()))


def mcc(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
    """Matthews correlation of y and the predictions; 0 where either is constant."""
    shares = [mass / mass.sum() for mass in _masses(y, outcome.predicted, weights)[:2]]
    if any((share > 0).sum() < 2 for share in shares):
        return 0.0
    both = np.average(y == outcome.predicted, weights=weights) - shares[0] @ shares[1]
    return both / np.sqrt((1 - shares[0] @ shares[0]) * (1 - shares[1] @ shares[1]))


def area_under_roc(hits: np.ndarray, scores: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """[K] areas of K columns; unweighted by the Mann-Whitney ranks."""
    if weights is not None:
        with _fast_sklearn() as metrics:
            columns = zip(hits.T, scores.T)
            return np.array([metrics.roc_auc_score(hit, column, sample_weight=weights) for hit, column in columns])
    from scipy.stats import rankdata

    positive = hits.sum(0)
    ranks = (rankdata(scores, axis=0) * hits).sum(0)
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(hits) - positive))


def average_precision(hits: np.ndarray, scores: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """[K] average precisions of K columns."""
    with _fast_sklearn() as metrics:
        columns = zip(hits.T, scores.T)
        return np.array(
            [metrics.average_precision_score(hit, column, sample_weight=weights) for hit, column in columns]
        )


def ranking(score: Callable[..., np.ndarray]) -> Function:
    """A binary ranking metric; one against the rest, averaged over the classes, for more of them."""

    def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
        scores = outcome.decision
        if outcome.probabilities is not None and (scores is None or scores.ndim == 2):
            scores = outcome.probabilities
        if scores is None or not np.isfinite(scores).all():
            return None
        if scores.ndim == 2 and scores.shape[1] == 2:
            scores = scores[:, 1] - scores[:, 0]
        columns = scores[:, None] if scores.ndim == 1 else scores
        hits = (y[:, None] == np.arange(columns.shape[1])) if scores.ndim == 2 else (y[:, None] == 1)
        if (hits.all(0) | ~hits.any(0)).any():
            return None
        return float(np.mean(score(hits, columns, weights)))

    return function


def of_probabilities(score: Callable[..., float]) -> Function:
    """A metric that has no value where there are no finite probabilities."""

    def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
        if outcome.probabilities is None or not np.isfinite(outcome.probabilities).all():
            return None
        return score(y, outcome.probabilities.astype(np.float64), weights)

    return function


def brier(y: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None) -> float:
    """Mean over rows of the summed squares of p - onehot(y); with two classes half of it, (p_1 - y)^2."""
    classes = probabilities.shape[1]
    squares = ((probabilities - np.eye(classes)[y]) ** 2).sum(1)
    return np.average(squares, weights=weights) / (2 if classes == 2 else 1)


def ece(y: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None) -> float:
    """Expected calibration error: sum over 15 bins of the largest probability, share |confidence - accuracy|."""
    mass, confidence, accuracy = bin_sums(probabilities, y, 15, weights)
    return np.abs(confidence - accuracy).sum() / mass.sum()


def rmse(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
    """Root of the mean squared error."""
    return np.sqrt(np.average((outcome.predicted.astype(np.float64) - y) ** 2, weights=weights))


def mae(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
    """Mean absolute error."""
    return np.average(np.abs(outcome.predicted.astype(np.float64) - y), weights=weights)


def r2(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
    """1 - squared error / squared deviation of y from its mean; None for a constant y."""
    if len(y) < 2 or np.ptp(y) == 0 or not np.isfinite(outcome.predicted).all():
        return None
    with _fast_sklearn() as metrics:
        return metrics.r2_score(y, outcome.predicted, sample_weight=weights)
