"""Methods compared across several data sets: Friedman, average ranks, Wilcoxon with Holm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.arrays import numbers
from ...core.checks import check_number, refuse
from ...core.lazy import late
from .looks import ALPHA
from .multiplicity import holm

stats = late("scipy.stats")


@dataclass(frozen=True)
class FriedmanResult:
    """Friedman's test over data sets.

    Attributes:
        statistic: chi2 of the ranks.
        pvalue: of "all methods rank alike".
        df: methods - 1.
        ranks: [methods] average rank, 1 is best.
        message: what the number of data sets does not allow to say, or "".
    """

    statistic: float
    pvalue: float
    df: int
    ranks: tuple[float, ...]
    message: str = ""


@dataclass(frozen=True)
class WilcoxonResult:
    """Signed-rank tests of each method against a baseline over data sets.

    Attributes:
        methods: [m] column of each method.
        pvalues: [m] two-sided, unadjusted.
        adjusted: [m] after Holm.
        medians: [m] median advantage over the baseline; positive means the method is better.
        has_power: whether the smallest p-value that this many data sets can give, 2^(1-n), is at most 0.05.
        message: why not, or "".
    """

    methods: tuple[int, ...]
    pvalues: tuple[float, ...]
    adjusted: tuple[float, ...]
    medians: tuple[float, ...]
    has_power: bool
    message: str = ""


def power_message(datasets: int, tests: int = 1) -> str:
    """What to say where a signed-rank test on so few data sets cannot reject at 0.05; "" where it can.

    >>> power_message(6)
    ''
    >>> power_message(5)
    'the Wilcoxon signed-rank test has no power: with 5 data sets (6 needed) its p-value is at least 0.0625'
    """
    check_number("datasets", datasets, low=1, integer=True)
    check_number("tests", tests, low=1, integer=True)
    smallest = min(1.0, 2.0 ** (1 - datasets))
    if smallest > ALPHA:
        return (
            f"the Wilcoxon signed-rank test has no power: with {datasets} data sets (6 needed) its p-value is at "
            f"least {smallest:.3g}"
        )
    if smallest * tests > ALPHA:
        return (
            f"the Wilcoxon signed-rank test has little power: with {datasets} data sets and {tests} methods the "
            f"smallest p-value after Holm is at least {smallest * tests:.3g}"
        )
    return ""


def single_ranks(scores: np.ndarray, greater_is_better: bool = True) -> np.ndarray:
    """Rank of each method on each data set, [datasets, methods]; 1 is best, ties share their mean rank.

    >>> single_ranks([[0.9, 0.8, 0.8]]).tolist()
    [[1.0, 2.5, 2.5]]
    """
    table = _table(scores)
    ranks: np.ndarray = stats.rankdata(-table if greater_is_better else table, axis=1)
    return ranks


def average_ranks(scores: np.ndarray, greater_is_better: bool = True) -> np.ndarray:
    """Average rank of each method over data sets, 1 is best, ties share their mean rank.

    Args:
        scores: [datasets, methods], finite.

    Returns:
        [methods].

    >>> average_ranks([[0.9, 0.8, 0.8], [0.7, 0.9, 0.6]]).tolist()
    [1.5, 1.75, 2.75]
    """
    return single_ranks(scores, greater_is_better).mean(0)


def friedman(scores: np.ndarray, greater_is_better: bool = True) -> FriedmanResult:
    """Friedman's test that all methods rank alike over data sets.

    Args:
        scores: [datasets, methods], finite; at least 2 data sets and 3 methods.
        greater_is_better: whether a larger score is the better one.

    Returns:
        All methods tied on every data set: statistic 0, p 1.

    Raises:
        ValueError: another shape, or values that are not finite.

    >>> result = friedman([[0.9, 0.8, 0.7], [0.8, 0.7, 0.6], [0.9, 0.7, 0.8], [0.7, 0.6, 0.5]])
    >>> round(result.statistic, 3), result.ranks
    (6.5, (1.0, 2.25, 2.75))

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006.
    """
    table = _table(scores)
    datasets, methods = table.shape
    if datasets < 2 or methods < 3:
        refuse("scores", "at least 2 data sets and 3 methods", table)
    statistic, pvalue = 0.0, 1.0
    if (table != table[:, :1]).any():
        statistic, pvalue = (float(value) for value in stats.friedmanchisquare(*table.T))
    ranks = tuple(average_ranks(table, greater_is_better).tolist())
    return FriedmanResult(statistic, pvalue, methods - 1, ranks, power_message(datasets))


def critical_difference(methods: int, datasets: int, alpha: float = ALPHA) -> float:
    """The least difference of two mean ranks that Nemenyi's test, which compares all pairs, tells apart.

        CD = q_alpha(methods) / sqrt(2) * sqrt(methods (methods + 1) / (6 datasets)),  q of the studentized range

    Args:
        methods: at least 2.
        datasets: at least 1.
        alpha: the level, in (0, 1).

    >>> round(critical_difference(4, 14), 2)
    1.25

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006.
    """
    check_number("methods", methods, low=2, integer=True)
    check_number("datasets", datasets, low=1, integer=True)
    check_number("alpha", alpha, low=0.0, high=1.0, open_low=True, open_high=True)
    quantile = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * datasets)))


def alike(ranks: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """The largest groups of two or more methods whose mean ranks lie less than ``difference`` apart, the best first.

    >>> alike([1.2, 3.4, 2.0, 2.9], 1.0)
    [(0, 2), (2, 3), (3, 1)]
    """
    order = sorted(range(len(ranks)), key=lambda method: ranks[method])
    groups: list[tuple[int, ...]] = []
    for start, first in enumerate(order):
        group = tuple(method for method in order[start:] if ranks[method] - ranks[first] < difference)
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return groups


def wilcoxon_holm(scores: np.ndarray, baseline: int = 0, greater_is_better: bool = True) -> WilcoxonResult:
    """Wilcoxon signed-rank test of each method against a baseline over data sets, Holm-adjusted.

    Args:
        scores: [datasets, methods], finite; at least 2 methods.
        baseline: column of the baseline.
        greater_is_better: whether a larger score is the better one.

    Returns:
        One entry for each method but the baseline, in column order. Equal on every data set: p 1.

    Raises:
        ValueError: another shape, values that are not finite, or no such column.

    >>> result = wilcoxon_holm([[0.8, 0.9], [0.7, 0.75], [0.6, 0.68]])
    >>> result.pvalues, result.has_power
    ((0.25,), False)

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006.
    """
    table = _table(scores)
    datasets, methods = table.shape
    if methods < 2:
        refuse("scores", "at least two methods", table)
    check_number("baseline", baseline, low=0, high=methods - 1, integer=True)
    others = tuple(method for method in range(methods) if method != baseline)
    sign = 1.0 if greater_is_better else -1.0
    gains = [sign * (table[:, method] - table[:, baseline]) for method in others]
    pvalues = [float(stats.wilcoxon(gain).pvalue) if gain.any() else 1.0 for gain in gains]
    medians = tuple(float(np.median(gain)) for gain in gains)
    message = power_message(datasets, len(others))
    return WilcoxonResult(others, tuple(pvalues), tuple(holm(pvalues).tolist()), medians, datasets >= 6, message)


def _table(scores: np.ndarray) -> np.ndarray:
    return numbers("scores", scores, (None, None))
