"""Five replications of two-fold cross-validation: the paired t-test and the combined F-test."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.arrays import numbers
from ...core.checks import check_number, refuse
from ...core.lazy import late
from .fitting import Scorer, as_fit, derived_seed, fitted_score, is_discrete, rows_and_targets
from .results import TestResult

stats = late("scipy.stats")


def five_by_two_differences(
    fit_a: Any, fit_b: Any, X: np.ndarray, y: np.ndarray, scorer: Scorer, seed: int = 0
) -> np.ndarray:
    """Score differences of two learners in five replications of two-fold cross-validation.

    Halves are stratified where y holds labels. Each learner gets a seed of its own in each fold.

    Args:
        fit_a, fit_b: ``fit(X, y, seed) -> predict`` or a scikit-learn estimator.
        X: [N, ...] inputs.
        y: [N] targets.
        scorer: ``scorer(y, predicted) -> float``.
        seed: of the splits and the learners, at least 0.

    Returns:
        [5, 2] scores of a minus scores of b.

    Raises:
        ValueError: lengths differ.

    >>> from sklearn.dummy import DummyClassifier
    >>> same = DummyClassifier()
    >>> five_by_two_differences(same, same, np.zeros((8, 1)), np.arange(8) % 2, lambda y, p: (y == p).mean()).shape
    (5, 2)
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    X, y = rows_and_targets(X, y)
    check_number("seed", seed, low=0, integer=True)
    learners = as_fit(fit_a), as_fit(fit_b)
    splitter = StratifiedKFold if is_discrete(y) else KFold
    differences = np.empty((5, 2))
    for replicate in range(5):
        halves = splitter(2, shuffle=True, random_state=derived_seed(seed, replicate)).split(X, y)
        for fold, (train, test) in enumerate(halves):
            scores = [
                fitted_score(fit, scorer, X, y, train, test, derived_seed(seed, replicate, fold, model))
                for model, fit in enumerate(learners)
            ]
            differences[replicate, fold] = scores[0] - scores[1]
    return differences


def paired_t_5x2(differences: np.ndarray) -> TestResult:
    """Dietterich's 5x2cv paired t-test on ready differences.

        t = p_1^(1) / sqrt(mean_i s_i^2),  s_i^2 = sum_k (p_i^(k) - mean_k p_i^(k))^2,  5 degrees of freedom

    Args:
        differences: [5, 2] score differences, a replication a row.

    Returns:
        All differences 0: statistic 0, p 1.

    Raises:
        ValueError: another shape, values that are not finite, or nonzero differences with no spread inside any
            replication (there is nothing to test them against).

    >>> result = paired_t_5x2([(0.02, 0.03), (0.01, 0.04), (0, 0.02), (0.03, 0.01), (0.02, 0.02)])
    >>> round(result.statistic, 6), round(result.pvalue, 5)
    (1.490712, 0.19623)

    Source: Dietterich 1998; arXiv:1811.12808.
    """
    values, variances = _spread(differences)
    if not values.any():
        return TestResult(0.0, 1.0, (5,), "5x2cv t")
    statistic = float(values[0, 0] / np.sqrt(variances.mean()))
    return TestResult(statistic, float(2 * stats.t.sf(abs(statistic), 5)), (5,), "5x2cv t")


def combined_f_5x2(differences: np.ndarray) -> TestResult:
    """Alpaydin's combined 5x2cv F-test on ready differences.

        F = sum_i sum_k (p_i^(k))^2 / (2 sum_i s_i^2)  ~  F(10, 5)

    Args:
        differences: [5, 2] score differences, a replication a row.

    Returns:
        All differences 0: statistic 0, p 1.

    Raises:
        ValueError: as :func:`paired_t_5x2`.

    >>> result = combined_f_5x2([(0.02, 0.03), (0.01, 0.04), (0, 0.02), (0.03, 0.01), (0.02, 0.02)])
    >>> round(result.statistic, 6), round(result.pvalue, 5)
    (2.888889, 0.1266)

    Source: Alpaydin 1999; arXiv:1811.12808.
    """
    values, variances = _spread(differences)
    if not values.any():
        return TestResult(0.0, 1.0, (10, 5), "5x2cv F")
    statistic = float((values**2).sum() / (2 * variances.sum()))
    return TestResult(statistic, float(stats.f.sf(statistic, 10, 5)), (10, 5), "5x2cv F")


def paired_ttest_5x2cv(
    fit_a: Any, fit_b: Any, X: np.ndarray, y: np.ndarray, scorer: Scorer, seed: int = 0
) -> TestResult:
    """5x2cv paired t-test of two learners: :func:`five_by_two_differences`, then :func:`paired_t_5x2`.

    >>> from sklearn.dummy import DummyClassifier
    >>> same = DummyClassifier()
    >>> paired_ttest_5x2cv(same, same, np.zeros((8, 1)), np.arange(8) % 2, lambda y, p: (y == p).mean()).pvalue
    1.0
    """
    return paired_t_5x2(five_by_two_differences(fit_a, fit_b, X, y, scorer, seed))


def combined_ftest_5x2cv(
    fit_a: Any, fit_b: Any, X: np.ndarray, y: np.ndarray, scorer: Scorer, seed: int = 0
) -> TestResult:
    """Combined 5x2cv F-test of two learners: :func:`five_by_two_differences`, then :func:`combined_f_5x2`.

    >>> from sklearn.dummy import DummyClassifier
    >>> same = DummyClassifier()
    >>> combined_ftest_5x2cv(same, same, np.zeros((8, 1)), np.arange(8) % 2, lambda y, p: (y == p).mean()).pvalue
    1.0
    """
    return combined_f_5x2(five_by_two_differences(fit_a, fit_b, X, y, scorer, seed))


def _spread(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = numbers("differences", differences, (5, 2))
    gaps = values[:, 0] - values[:, 1]
    gaps[np.abs(gaps) <= 1e-12 * np.abs(values).max()] = 0.0  # equal but for rounding
    variances = gaps**2 / 2  # s_i^2 of two values is half their squared gap
    if values.any() and not variances.any():
        refuse("differences", "spread between the two folds of a replication, to test by", values)
    return values, variances
