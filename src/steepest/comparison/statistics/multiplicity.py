"""Many comparisons at once: Holm's adjustment and the verdicts made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ...core.arrays import numbers
from ...core.checks import check_number
from .looks import ALPHA
from .results import PairedResult

BETTER, SAME, WORSE = "better", "not told apart", "worse"


def holm(pvalues: Iterable[float]) -> np.ndarray:
    """Holm's step-down adjustment, which holds the chance of any false alarm.

        p_(i) -> max_{j <= i} min(1, (m - j + 1) p_(j)),  p_(1) <= ... <= p_(m)

    Args:
        pvalues: [m] in [0, 1], m may be 0.

    Returns:
        [m] adjusted p-values in the order given.

    Raises:
        ValueError: a value that is NaN or outside [0, 1].

    >>> holm([0.04, 0.01, 0.03]).round(3).tolist()
    [0.06, 0.03, 0.06]

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    given = list(pvalues) if isinstance(pvalues, Iterator) else pvalues
    values = numbers("pvalues", given, low=0.0, high=1.0, empty=True)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted


def tiers(
    results: Sequence[PairedResult],
    holm_p: Sequence[float],
    alpha: float = ALPHA,
    greater_is_better: bool = True,
) -> list[str]:
    """Each method's verdict against the baseline.

    Args:
        results: [m] differences, method minus baseline, in the metric's own units.
        holm_p: [m] their adjusted p-values.
        alpha: the level; p equal to it counts as told apart.
        greater_is_better: whether a larger metric is the better one.

    Returns:
        [m] of "better", "not told apart", "worse".

    Raises:
        ValueError: lengths differ.

    >>> up = PairedResult(0.1, 0.05, 0.15, 0.01, 4, 0.01, 0.04)
    >>> tiers([up, up], [0.01, 0.2]), tiers([up], [0.01], greater_is_better=False)
    (['better', 'not told apart'], ['worse'])
    """
    adjusted = numbers("holm_p", holm_p, (len(results),), low=0.0, high=1.0).tolist()
    check_number("alpha", alpha, low=0.0, high=1.0)
    return [
        SAME if p > alpha or result.mean == 0 else BETTER if (result.mean > 0) == greater_is_better else WORSE
        for result, p in zip(results, adjusted)
    ]
