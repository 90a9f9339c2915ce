"""The difference of two models on one fixed test set, by resampling its rows in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...core.arrays import array, labels, numbers, row_weights
from ...core.checks import check_number, refuse
from .looks import ALPHA
from .results import BootstrapResult


def bootstrap_difference(
    a: np.ndarray, b: np.ndarray, seed: int = 0, n: int = 2000, confidence: float = 1 - ALPHA
) -> BootstrapResult:
    """Mean difference of two models' per-row values on the same rows, with a paired bootstrap interval.

    Args:
        a, b: [N] correctness (0 or 1) or loss of each row.
        seed: of the resamples, at least 0.
        n: number of resamples.
        confidence: of the percentile interval, in (0, 1).

    Returns:
        mean(a) - mean(b); p = 2 min(1 + #{d <= 0}, 1 + #{d >= 0}) / (n + 1), at most 1. It speaks of these fitted
        models and of rows drawn like these, not of training again.

    Raises:
        ValueError: lengths differ or are 0, values that are not finite, n below 1.

    >>> result = bootstrap_difference([1, 1, 1, 0] * 25, [1, 0, 1, 0] * 25)
    >>> result.difference, result.low > 0
    (0.25, True)

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    a = numbers("a", a)
    gaps = a - numbers("b", b, a.shape)
    _check(n, confidence)
    generator = np.random.default_rng(seed)
    rows = len(gaps)
    values, counts = np.unique(gaps, return_counts=True)
    if len(values) <= 16:
        # the counts of few distinct values are multinomial: the same distribution, without drawing the rows
        means = generator.multinomial(rows, counts / rows, size=n) @ values / rows
    else:
        block = max(1, 2_000_000 // rows)
        sizes = [min(block, n - start) for start in range(0, n, block)]
        means = np.concatenate([gaps[generator.integers(rows, size=(size, rows))].mean(1) for size in sizes])
    return _summary(float(gaps.mean()), means, confidence)


def bootstrap_metric_difference(
    metric: Callable[..., float],
    y: np.ndarray,
    outcome_a: Any,
    outcome_b: Any,
    seed: int = 0,
    n: int = 2000,
    confidence: float = 1 - ALPHA,
    weights: np.ndarray | None = None,
) -> BootstrapResult:
    """Difference of any metric between two models on the same rows, with a paired bootstrap interval.

    Args:
        metric: ``metric(y, outcome) -> float``, or ``metric(y, outcome, weights)`` where weights are given.
        y: [N] targets.
        outcome_a, outcome_b: what each model says of the N rows: an object with ``rows(index)``, or an array.
        seed, n, confidence: as :func:`bootstrap_difference`; the metric is called 2 n times.
        weights: [N] row weights, drawn with their rows, or None.

    Returns:
        As :func:`bootstrap_difference`. Resamples on which the metric is not finite (one class only) are left out.

    Raises:
        ValueError: the metric is not finite on all rows, or on more than half of the resamples.

    >>> y = np.array([0, 1] * 20)
    >>> accuracy = lambda y, predicted: float((y == predicted).mean())
    >>> bootstrap_metric_difference(accuracy, y, y, 1 - y, n=50).difference
    1.0
    """
    y = labels("y", y, (None, ...))
    if y.shape[1:] == (1,):
        refuse("y", f"shape ({len(y)},)", y)
    outcome_a, outcome_b = _outcome("outcome_a", outcome_a, len(y)), _outcome("outcome_b", outcome_b, len(y))
    weights = row_weights(weights, len(y))
    _check(n, confidence)
    generator = np.random.default_rng(seed)

    def difference(index: np.ndarray) -> float:
        extra = () if weights is None else (weights[index],)
        a, b = (metric(y[index], _rows(outcome, index), *extra) for outcome in (outcome_a, outcome_b))
        return float(a) - float(b)  # inf - inf is NaN, and left out

    observed = difference(np.arange(len(y)))
    drawn = np.array([difference(generator.integers(len(y), size=len(y))) for _ in range(n)])
    finite = drawn[np.isfinite(drawn)]
    if not np.isfinite(observed):
        refuse("metric", f"a finite difference on all {len(y)} rows", observed)
    if len(finite) < n / 2:
        refuse("metric", f"a finite difference on half of the {n} resamples", f"{len(finite)} of them")
    return _summary(observed, finite, confidence)


def _outcome(argument: str, outcome: Any, rows: int) -> Any:
    if hasattr(outcome, "rows"):
        return outcome
    values = array(argument, outcome, (rows, ...))
    if values.shape[1:] == (1,):
        refuse(argument, f"shape ({rows},)", values)
    return values


def _rows(outcome: Any, index: np.ndarray) -> Any:
    return outcome.rows(index) if hasattr(outcome, "rows") else outcome[index]


def _check(n: int, confidence: float) -> None:
    check_number("n", n, low=1, integer=True)
    check_number("confidence", confidence, low=0.0, high=1.0, open_low=True, open_high=True)


def _summary(observed: float, drawn: np.ndarray, confidence: float) -> BootstrapResult:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    tail = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return BootstrapResult(observed, float(low), float(high), min(1.0, 2 * tail / (len(drawn) + 1)), len(drawn))
