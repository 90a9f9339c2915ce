"""Tests of classifiers that predicted the same test rows: McNemar for two, Cochran's Q for more."""

from __future__ import annotations

import numpy as np

from ...core.arrays import labels
from ...core.lazy import late
from .results import TestResult

stats = late("scipy.stats")


def mcnemar_test(y: np.ndarray, pred_a: np.ndarray, pred_b: np.ndarray, exact: bool | None = None) -> TestResult:
    """McNemar's test that two classifiers are equally often right.

    With B the rows only a has right and C those only b has right:

        chi2 = max(|B - C| - 1, 0)^2 / (B + C),  1 degree of freedom
        exact p = min(1, 2 Binom.cdf(min(B, C); B + C, 1/2))

    Args:
        y: [N] true labels.
        pred_a, pred_b: [N] predicted labels.
        exact: the binomial form; by default where B + C < 25.

    Returns:
        The statistic is chi2, or min(B, C) in the exact form. No discordant row: statistic 0, p 1.

    Raises:
        ValueError: shapes that differ or are not [N], N at least 1; numbers that are not finite.
        TypeError: neither labels nor numbers, or text beside numbers.

    >>> y = np.ones(40, int)
    >>> a, b = y.copy(), y.copy()
    >>> a[:10], b[10:35] = 0, 0
    >>> result = mcnemar_test(y, a, b)
    >>> round(result.statistic, 3), round(result.pvalue, 6)
    (5.6, 0.01796)

    Source: McNemar 1947; Edwards 1948 (continuity correction); arXiv:1811.12808.
    """
    y = labels("y", y)
    right_a, right_b = labels("pred_a", pred_a, like=y) == y, labels("pred_b", pred_b, like=y) == y
    b, c = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    if exact or (exact is None and b + c < 25):
        pvalue = float(stats.binomtest(min(b, c), b + c).pvalue) if b + c else 1.0
        return TestResult(float(min(b, c)), min(1.0, pvalue), method="exact")
    # without the max, the correction would turn B = C, the evenest outcome there is, into evidence
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c) if b + c else 0.0
    return TestResult(statistic, float(stats.chi2.sf(statistic, 1)), (1,), "chi2")


def cochran_q(y: np.ndarray, *predictions: np.ndarray) -> TestResult:
    """Cochran's Q test that M classifiers are equally often right.

    With G_j the rows model j has right, L_i the models right on row i, T = sum_j G_j:

        Q = (M - 1) (M sum_j G_j^2 - T^2) / (M T - sum_i L_i^2),  M - 1 degrees of freedom

    Where it rejects, follow with :func:`mcnemar_test` on the pairs and :func:`holm`.

    Args:
        y: [N] true labels.
        *predictions: [N] predicted labels of each model, two models or more.

    Returns:
        No row on which the models disagree about being right: statistic 0, p 1.

    Raises:
        ValueError: fewer than two models; as :func:`mcnemar_test`.
        TypeError: as :func:`mcnemar_test`.

    >>> y = np.ones(8, int)
    >>> right = [{0, 1, 2, 3, 4, 5}, {0, 1, 2, 5}, {2, 7}]
    >>> result = cochran_q(y, *(np.array([i in s for i in range(8)], int) for s in right))
    >>> round(result.statistic, 6), round(result.pvalue, 6)
    (4.0, 0.135335)

    Source: Cochran 1950; arXiv:1811.12808.
    """
    if len(predictions) < 2:
        raise ValueError(f"predictions: expected two models or more, got {len(predictions)}")
    y = labels("y", y)
    right = np.stack([labels("predictions", predicted, like=y) == y for predicted in predictions]).astype(np.int64)
    models, per_model, per_row = len(right), right.sum(1), right.sum(0)
    total = int(right.sum())
    spread = models * total - int((per_row**2).sum())
    statistic = (models - 1) * (models * int((per_model**2).sum()) - total**2) / spread if spread else 0.0
    return TestResult(statistic, float(stats.chi2.sf(statistic, models - 1)), (models - 1,), "chi2")
