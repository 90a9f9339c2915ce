"""The corrected resampled t-test: paired differences over overlapping training sets."""

from __future__ import annotations

import numpy as np

from ...core.arrays import numbers
from ...core.checks import check_number, refuse
from ...core.lazy import late
from .looks import ALPHA
from .results import PairedResult

stats = late("scipy.stats")

POWER = 0.8
"""The chance with which a design finds the difference that is called detectable."""


def corrected_resampled_ttest(
    differences: np.ndarray,
    *,
    test_fraction: float | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    confidence: float = 1 - ALPHA,
) -> PairedResult:
    """Paired t-test over J train/test splits, corrected for the overlap of their training sets.

        var(mean) = (1/J + n_test / n_train) * s^2,  s^2 the sample variance (ddof 1),  J - 1 degrees of freedom
        detectable = (t_{(1 + confidence) / 2} + t_{.8}) sqrt(var(mean))

    Args:
        differences: [J] paired score differences, J at least 2; finite.
        test_fraction: share of the rows in each test part, in (0, 1); or give ``n_train`` and ``n_test``.
        n_train, n_test: rows in each training and test part.
        confidence: of the interval, in (0, 1); ``detectable`` is for a test at the level 1 - confidence.

    Returns:
        All differences 0: mean 0, p 1. All equal and not 0: s is 0 and t has no value, but discrete scores on few
        rows produce this without certainty, so p is that of the exact sign-flip test, 2^(1-J), and never 0. Both are
        marked ``degenerate``: their interval and ``detectable`` have width zero.

    Raises:
        ValueError: fewer than two differences, values that are not finite, a share out of range, or not exactly one
            way of giving the sizes.

    >>> result = corrected_resampled_ttest([0.01, 0.03, 0.02, 0.04, 0.00], test_fraction=0.2)
    >>> round(result.mean, 6), round(result.standard_error, 6), round(result.pvalue, 6)
    (0.02, 0.010607, 0.132419)

    Source: Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003.
    """
    values = numbers("differences", differences)
    if len(values) < 2:
        refuse("differences", "at least two numbers [J]", values)
    check_number("confidence", confidence, low=0.0, high=1.0, open_low=True, open_high=True)
    ratio = _ratio(test_fraction, n_train, n_test)
    splits, df = len(values), len(values) - 1
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # equal but for rounding
        pvalue = 2.0 ** (1 - splits) if mean else 1.0
        return PairedResult(mean, mean, mean, pvalue, df, 0.0, 0.0, degenerate=True)
    error = float(np.sqrt((1 / splits + ratio) * values.var(ddof=1)))
    quantile = float(stats.t.ppf((1 + confidence) / 2, df))
    half = quantile * error
    pvalue = float(2 * stats.t.sf(abs(mean) / error, df))
    detectable = (quantile + float(stats.t.ppf(POWER, df))) * error
    return PairedResult(mean, mean - half, mean + half, pvalue, df, error, detectable)


def _ratio(test_fraction: float | None, n_train: int | None, n_test: int | None) -> float:
    """n_test / n_train."""
    if test_fraction is not None and n_train is None and n_test is None:
        check_number("test_fraction", test_fraction, low=0.0, high=1.0, open_low=True, open_high=True)
        return test_fraction / (1 - test_fraction)
    if test_fraction is None and n_train is not None and n_test is not None:
        check_number("n_train", n_train, low=1.0)
        check_number("n_test", n_test, low=1.0)
        return n_test / n_train
    raise ValueError("expected either test_fraction, or both n_train and n_test")
