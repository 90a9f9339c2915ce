"""How sure an accuracy on one held-out set is."""

from __future__ import annotations

import math

from ...core.checks import check_number
from ...core.lazy import late
from .looks import ALPHA
from .results import TestResult

stats = late("scipy.stats")


def holdout_interval(accuracy: float, n: int, confidence: float = 1 - ALPHA) -> tuple[float, float]:
    """Normal-approximation interval of an accuracy measured on held-out rows.

        acc ± z sqrt(acc (1 - acc) / n)

    Args:
        accuracy: share of correct rows, in [0, 1].
        n: number of rows, at least 1.
        confidence: in (0, 1).

    Returns:
        (low, high), cut to [0, 1]. At accuracy 0 or 1 the approximation has width zero.

    Raises:
        ValueError: an argument out of its range.

    >>> [round(bound, 5) for bound in holdout_interval(0.85, 200)]
    [0.80051, 0.89949]

    Source: Raschka, "Model Evaluation, Model Selection, and Algorithm Selection in Machine Learning", arXiv:1811.12808.
    """
    _check(n, accuracy=accuracy)
    check_number("confidence", confidence, low=0.0, high=1.0, open_low=True, open_high=True)
    half = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(accuracy * (1 - accuracy) / n)
    return max(0.0, float(accuracy - half)), min(1.0, float(accuracy + half))


def proportions_test(accuracy_a: float, accuracy_b: float, n: int) -> TestResult:
    """z-test of two accuracies, each measured on its own n independent rows.

        z = (a1 - a2) / sqrt(2 a (1 - a) / n),  a = (a1 + a2) / 2

    For two models on the same rows use :func:`mcnemar_test`.

    Args:
        accuracy_a, accuracy_b: shares of correct rows, in [0, 1].
        n: number of rows of each, at least 1.

    Raises:
        ValueError: an argument out of its range.

    >>> round(proportions_test(0.85, 0.80, 200).statistic, 6)
    1.315903

    Source: arXiv:1811.12808.
    """
    _check(n, accuracy_a=accuracy_a, accuracy_b=accuracy_b)
    mean = (accuracy_a + accuracy_b) / 2
    if accuracy_a == accuracy_b:
        return TestResult(0.0, 1.0, method="normal")
    z = (accuracy_a - accuracy_b) / math.sqrt(2 * mean * (1 - mean) / n)
    return TestResult(z, float(2 * stats.norm.sf(abs(z))), method="normal")


def _check(n: int, **accuracies: float) -> None:
    check_number("n", n, low=1.0)
    for name, value in accuracies.items():
        check_number(name, value, low=0.0, high=1.0)
