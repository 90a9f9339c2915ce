"""What the tests of this package return."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TestResult:
    """A test statistic with its p-value.

    Attributes:
        statistic: the statistic, finite.
        pvalue: two-sided where the test has sides, in [0, 1].
        df: degrees of freedom of the reference distribution; empty for an exact test.
        method: which form of the test was used.
    """

    __test__ = False  # pytest would collect the class by its name

    statistic: float
    pvalue: float
    df: tuple[int, ...] = ()
    method: str = ""


@dataclass(frozen=True)
class PairedResult:
    """A mean paired difference with its interval and p-value.

    Attributes:
        mean: the mean difference.
        low, high: the confidence interval of the true difference.
        pvalue: two-sided p-value of "no difference", in [0, 1].
        df: degrees of freedom of the t distribution.
        standard_error: of the mean, corrected for overlapping training sets.
        detectable: the smallest true difference that this design would have found with 80% power by a two-sided test
            at the level of the interval.
        degenerate: the differences had no spread, so interval and ``detectable`` have width zero and mean nothing.
    """

    mean: float
    low: float
    high: float
    pvalue: float
    df: int
    standard_error: float
    detectable: float
    degenerate: bool = False


@dataclass(frozen=True)
class BootstrapResult:
    """A difference on one fixed test set with its bootstrap interval.

    Attributes:
        difference: the observed difference, a minus b.
        low, high: percentile interval.
        pvalue: two-sided, never below 2 / (rounds + 1).
        rounds: the resamples that entered; those where the metric is undefined are left out.
    """

    difference: float
    low: float
    high: float
    pvalue: float
    rounds: int


@dataclass(frozen=True)
class BootstrapError:
    """A bootstrap estimate of a prediction error.

    Attributes:
        error: the estimate, the mean over rounds.
        low, high: percentile interval of the rounds.
        rounds: the estimate of each round.
    """

    error: float
    low: float
    high: float
    rounds: tuple[float, ...]
