"""What held-back rows decide after fitting (temperature, threshold), and how calibrated probabilities are."""

from __future__ import annotations

import numpy as np

from ...core.arrays import codes, numbers, row_weights
from ...core.checks import check_number, refuse

TEMPERATURES = (0.05, 20.0)
"""The least and the greatest temperature that is fitted."""

_ROUNDING = 1e-3
"""Half types and sums of softmaxes can end just above 1."""


def in_range(argument: str, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities; finite ones must lie in 0..1 (logits don't).

    Raises:
        ValueError: they don't.
    """
    if probabilities.size:
        low, high = float(probabilities.min()), float(probabilities.max())
        if np.isfinite(low + high) and (low < 0 or high > 1 + _ROUNDING):
            refuse(argument, "probabilities in 0..1", [low, high])
    return probabilities


def _rows(
    probabilities: np.ndarray, y: np.ndarray, weights: np.ndarray | None, finite: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Probabilities [N, C], codes [N] and weights [N], checked."""
    p = in_range("probabilities", numbers("probabilities", probabilities, (None, None), finite=finite, empty=True))
    return p, codes("y", y, (len(p),), classes=p.shape[1]), row_weights(weights, len(p))


def negative_log_likelihood(y: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean of -log p of the true class.

    >>> round(negative_log_likelihood(np.array([0]), np.array([[0.5, 0.5]])), 4)
    0.6931
    """
    return _mean_log_loss(*_rows(probabilities, y, weights))


def _mean_log_loss(probabilities: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> float:
    chosen = probabilities[np.arange(len(y)), y]
    # the floor of scikit-learn's log_loss: a forest's flat zero counts as 36 nats, not as infinity
    return float(np.average(-np.log(np.clip(chosen, np.finfo(np.float64).eps, None)), weights=weights))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) of each row, in float64.

    >>> apply_temperature(np.array([[0.8, 0.2]]), 2.0).round(4)
    array([[0.6667, 0.3333]])
    """
    check_number("temperature", temperature, low=0.0, open_low=True)
    given = numbers("probabilities", probabilities, (None, None), finite=False, empty=True)
    return _cooled(in_range("probabilities", given), temperature)


def _cooled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    from scipy.special import softmax

    floor = np.finfo(np.float32).tiny  # where a float32 softmax ends
    cooled: np.ndarray = softmax(np.log(np.clip(probabilities, floor, None)) / temperature, axis=1)
    return cooled


def fit_temperature(probabilities: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The temperature T in :data:`TEMPERATURES` that minimises the log loss of softmax(log p / T).

    Args:
        probabilities: [N, C] of rows the model was not trained on.
        y: [N] class codes.
        weights: [N] row weights, or None.

    Returns:
        T; 1.0 where there is no row or a probability is not finite.

    >>> round(fit_temperature(np.array([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1])), 2)  # log 9 / log 3
    2.0

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    from scipy.optimize import minimize_scalar

    probabilities, y, weights = _rows(probabilities, y, weights, finite=False)
    if not len(y) or not np.isfinite(probabilities).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return _mean_log_loss(_cooled(probabilities, float(np.exp(log_temperature))), y, weights)

    bounds = (float(np.log(TEMPERATURES[0])), float(np.log(TEMPERATURES[1])))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x))


def tune_threshold(
    y: np.ndarray, decision: np.ndarray, default: float = 0.0, weights: np.ndarray | None = None
) -> float:
    """The threshold t of "class 1 where decision > t" with the highest macro F1.

    Args:
        y: [N] codes 0 and 1 of rows the model was not trained on.
        decision: [N] binary decision.
        default: the threshold used without tuning.
        weights: [N] row weights, or None.

    Returns:
        Midway between two neighbouring decisions; of equally good ones the nearest to the default, and the default
        itself where it is as good as any, y has one class only, or a decision is not finite.

    >>> tune_threshold(np.array([0, 0, 1, 1]), np.array([-3.0, 1.0, 2.0, 4.0]))
    1.5
    """
    y = codes("y", y, classes=2, empty=True)
    decision = numbers("decision", decision, y.shape, finite=False)
    check_number("default", default)
    weights = row_weights(weights, len(y))
    if len(np.unique(y)) < 2 or not np.isfinite(decision).all():
        return default
    weights = np.ones(len(y)) if weights is None else weights
    cuts, group = np.unique(decision, return_inverse=True)
    positive = np.bincount(group, weights * (y == 1))
    negative = np.bincount(group, weights * (y == 0))
    # cut k leaves the k lowest distinct decisions to class 0
    missed, true_negative = (
        np.concatenate([[0.0], np.cumsum(weights_of_class)]) for weights_of_class in (positive, negative)
    )
    hits, false_alarms = missed[-1] - missed, true_negative[-1] - true_negative
    wrong = missed + false_alarms
    score = 2 * hits / (2 * hits + wrong) + 2 * true_negative / (2 * true_negative + wrong)
    middle = cuts[:-1] + np.diff(cuts) / 2
    thresholds = np.concatenate([[cuts[0] - 1], middle, [cuts[-1] + 1]])
    thresholds[np.searchsorted(cuts, default, side="right")] = default
    best = np.flatnonzero(score >= score.max() - 1e-12)
    return float(thresholds[best[np.argmin(np.abs(thresholds[best] - default))]])


def reliability_bins(probabilities: np.ndarray, y: np.ndarray, bins: int = 15) -> dict[str, list]:
    """Confidence and accuracy in equal-width bins (lo, hi] of the largest probability.

    Args:
        probabilities: [N, C].
        y: [N] class codes.
        bins: number of bins.

    Returns:
        ``confidence``, ``accuracy`` (means; None in an empty bin) and ``count``, a list of ``bins`` each.

    >>> reliability_bins(np.array([[0.9, 0.1], [0.7, 0.3]]), np.array([0, 1]), bins=2)
    {'confidence': [None, 0.8], 'accuracy': [None, 0.5], 'count': [0, 2]}
    """
    check_number("bins", bins, low=1, integer=True)
    probabilities, y, _ = _rows(probabilities, y, None)
    count, confidence, accuracy = bin_sums(probabilities, y, bins, None)
    means = [[float(total / n) if n else None for total, n in zip(totals, count)] for totals in (confidence, accuracy)]
    return {"confidence": means[0], "accuracy": means[1], "count": [int(n) for n in count]}


def bin_sums(
    probabilities: np.ndarray, y: np.ndarray, bins: int, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight, summed confidence and summed accuracy of each bin."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    weights = np.ones(len(probabilities)) if weights is None else np.asarray(weights, dtype=np.float64)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == np.asarray(y)
    place = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0, bins - 1)
    sums = [np.bincount(place, weights * values, minlength=bins) for values in (1.0, confidence, right)]
    return sums[0], sums[1], sums[2]
