"""The Bayesian correlated t test: how probable it is that a difference is large enough to matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...core.checks import check_number
from ...core.lazy import late
from .resampled import corrected_resampled_ttest

stats = late("scipy.stats")

PROBABILITIES = ("prob_better", "prob_same", "prob_worse")
"""How results name the three probabilities."""


@dataclass(frozen=True)
class Practical:
    """Posterior probabilities of a true difference d, with a region of practical equivalence; their sum is 1.

    Attributes:
        better: P(d > rope).
        same: P(-rope <= d <= rope).
        worse: P(d < -rope).
        rope: half the width of the region.
    """

    better: float
    same: float
    worse: float
    rope: float

    @property
    def turned(self) -> Practical:
        """The same of -d: what is better where a smaller metric is."""
        return Practical(self.worse, self.same, self.better, self.rope)


def bayesian_correlated_ttest(
    differences: np.ndarray,
    *,
    rope: float = 0.0,
    test_fraction: float | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
) -> Practical:
    """The Bayesian correlated t test over J train/test splits, with a region of practical equivalence.

        d | differences ~ mean + sqrt((1/J + n_test / n_train) s^2) t_{J-1}

    s^2 is the sample variance (ddof 1); the prior is flat in the mean and in the logarithm of the variance. With rope
    0, ``worse`` is the one-sided p-value of :func:`corrected_resampled_ttest`.

    Args:
        differences: [J] paired score differences, J at least 2; finite.
        rope: half the width of the region of practical equivalence, at least 0; in the units of the score.
        test_fraction: share of the rows in each test part, in (0, 1); or give ``n_train`` and ``n_test``.
        n_train, n_test: rows in each training and test part.

    Returns:
        All differences equal: a point mass at their mean. That says nothing of chance, as the test's exact p-value
        does: few rows and a discrete score make equal differences easily.

    Raises:
        ValueError: as :func:`corrected_resampled_ttest`; a rope below 0 or not finite.

    >>> found = bayesian_correlated_ttest([0.01, 0.03, 0.02, 0.04, 0.00], rope=0.01, n_train=4, n_test=1)
    >>> round(found.better, 4), round(found.same, 4), round(found.worse, 4)
    (0.8004, 0.1759, 0.0237)

    Source: Corani and Benavoli, "A Bayesian approach for comparing cross-validated algorithms on multiple data sets",
    Machine Learning 100, 2015; Benavoli et al., arXiv:1606.04316.
    """
    tested = corrected_resampled_ttest(differences, test_fraction=test_fraction, n_train=n_train, n_test=n_test)
    return practical(tested.mean, tested.standard_error, tested.df, rope)


def practical(mean: float, standard_error: float, df: int, rope: float) -> Practical:
    """Probabilities by a posterior t distribution with its mean, standard error and degrees of freedom.

    Args:
        mean: of the difference, finite.
        standard_error: at least 0; 0 is a point mass at the mean.
        df: degrees of freedom; 0 is a normal distribution.
        rope: half the width of the region of practical equivalence, at least 0.

    Raises:
        ValueError: a number out of range or not finite.

    >>> practical(0.02, 0.0, 4, 0.01), practical(0.01, 0.0, 4, 0.01).same
    (Practical(better=1.0, same=0.0, worse=0.0, rope=0.01), 1.0)
    """
    check_number("mean", mean, low=-math.inf, high=math.inf, open_low=True, open_high=True)
    check_number("standard_error", standard_error, low=0.0, high=math.inf, open_high=True)
    check_number("df", df, low=0, integer=True)
    check_number("rope", rope, low=0.0, high=math.inf, open_high=True)
    if standard_error == 0:
        better, worse = float(mean > rope), float(mean < -rope)
        return Practical(better, 1 - better - worse, worse, rope)
    posterior = stats.t(df) if df else stats.norm()
    better = float(posterior.sf((rope - mean) / standard_error))
    worse = float(posterior.cdf((-rope - mean) / standard_error))
    same = max(0.0, 1 - better - worse)  # below 0 by rounding alone
    return Practical(better, same, worse, rope)
