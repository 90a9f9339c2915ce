"""Metrics of ranked lists: of each list that orders anything, then their mean.

Targets are ``[N, 2]``: the grade of a row, and the code of its list. A list counts where two of its grades differ. Rows
of equal score stand in every order equally often: each metric of ranks is its expected value over those orders, so that
a model which gives one score to all rows gets what chance gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from ..scores.outcome import Outcome
from .metric import Metric

special = late("scipy.special")

K = 10
"""Where NDCG ends by default."""
_AT = re.compile(r"ndcg@([1-9]\d{0,5})")


@dataclass(frozen=True)
class RankedLists:
    """Rows of the lists that count, list by list, the highest score first.

    Attributes:
        grades: ``[M]``.
        scores: ``[M]``.
        lists: ``[M]`` 0..L-1.
        codes: ``[L]`` which list each is, as the targets call it.
    """

    grades: np.ndarray
    scores: np.ndarray
    lists: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, scores: np.ndarray) -> RankedLists:
        """From targets ``[N, 2]`` and scores ``[N]``."""
        codes, lists = np.unique(y[:, 1], return_inverse=True)
        grades = y[:, 0]
        low, high = np.full(len(codes), np.inf), np.full(len(codes), -np.inf)
        np.minimum.at(low, lists, grades)
        np.maximum.at(high, lists, grades)
        counted = low < high
        rows = np.flatnonzero(counted[lists])
        number = np.cumsum(counted) - 1
        rows = rows[np.lexsort((-scores[rows], lists[rows]))]
        return cls(grades[rows], scores[rows], number[lists[rows]], codes[counted])

    @cached_property
    def sizes(self) -> np.ndarray:
        """Rows of each list ``[L]``."""
        return np.bincount(self.lists, minlength=len(self.codes))

    @cached_property
    def place(self) -> np.ndarray:
        """Where each row stands in its list ``[M]``, from 0."""
        starts: np.ndarray = np.cumsum(self.sizes) - self.sizes
        place: np.ndarray = np.arange(len(self.lists)) - starts[self.lists]
        return place

    @cached_property
    def ties(self) -> np.ndarray:
        """The number ``[M]`` of the rows of one list and equal score that a row is among, from 0."""
        first = np.ones(len(self.lists), dtype=bool)
        first[1:] = (self.lists[1:] != self.lists[:-1]) | (self.scores[1:] != self.scores[:-1])
        return np.cumsum(first) - 1

    def by_list(self, values: np.ndarray) -> np.ndarray:
        """Sums ``[L]`` of ``[M]``."""
        return np.bincount(self.lists, values, minlength=len(self.codes))

    def mean_of_ties(self, values: np.ndarray) -> np.ndarray:
        """The mean ``[M]`` over the rows of equal score."""
        means: np.ndarray = np.bincount(self.ties, values) / np.bincount(self.ties)
        return means[self.ties]

    def ndcg(self, k: int | None = None) -> np.ndarray:
        """Expected NDCG@k of each list ``[L]``, with gains 2^grade - 1.

        >>> y = np.array([[2.0, 7.0], [0.0, 7.0], [1.0, 7.0]])
        >>> RankedLists.of(y, np.array([0.2, 1.0, 0.5])).ndcg().round(4)
        array([0.5869])
        """
        discount = 1 / np.log2(self.place + 2.0)
        if k is not None:
            discount = np.where(self.place < k, discount, 0.0)
        gains = np.exp2(self.grades) - 1
        best = gains[np.lexsort((-gains, self.lists))]
        shares: np.ndarray = self.by_list(gains * self.mean_of_ties(discount)) / self.by_list(best * discount)
        return shares

    def _parts(self) -> tuple[np.ndarray, ...]:
        """Of each row: rows and relevant rows of its score, rows and relevant rows above them, its place among them."""
        relevant = (self.grades > 0).astype(np.float64)
        size, good = np.bincount(self.ties), np.bincount(self.ties, relevant)
        first = np.flatnonzero(np.diff(self.ties, prepend=-1))
        total = np.cumsum(relevant) - relevant  # relevant rows before a row, of all lists
        start = np.cumsum(self.sizes) - self.sizes
        above = total - total[start][self.lists]
        return size[self.ties], good[self.ties], self.place[first][self.ties], above[first][self.ties]

    def average_precision(self) -> np.ndarray:
        """Expected average precision of each list ``[L]``; rows of a grade above 0 are relevant."""
        size, good, before, above = self._parts()
        j = self.place - before  # of a relevant row at this place, others are before it with chance (good-1)/(size-1)
        others = above + 1 + j * (good - 1) / np.maximum(size - 1, 1)
        total: np.ndarray = self.by_list(good / size * others / (self.place + 1))
        return total / self.by_list((self.grades > 0) * 1.0)

    def reciprocal_rank(self) -> np.ndarray:
        """Expected 1 / rank of the first relevant row of each list ``[L]``."""
        size, good, before, above = self._parts()
        j = self.place - before
        can = (above == 0) & (good > 0) & (size - j >= good)  # the first relevant row may stand here
        log = special.gammaln
        with np.errstate(all="ignore"):
            ways = log(size - j) - log(good) - log(size - j - good + 1)
            of = log(size + 1) - log(good + 1) - log(size - good + 1)
            chance = np.where(can, np.exp(ways - of), 0.0)
        return self.by_list(chance / (self.place + 1))

    def kendall(self) -> np.ndarray:
        """Kendall's tau-b of scores and grades of each list ``[L]``; 0 where all scores are equal."""
        ends = np.cumsum(self.sizes)
        taus = np.zeros(len(ends))
        for number, (end, size) in enumerate(zip(ends, self.sizes)):
            own = slice(end - size, end)
            a = np.sign(self.scores[own, None] - self.scores[None, own])
            b = np.sign(self.grades[own, None] - self.grades[None, own])
            length = np.sqrt(np.square(a).sum() * np.square(b).sum())
            taus[number] = (a * b).sum() / length if length else 0.0
        return taus

    def spearman(self) -> np.ndarray:
        """Spearman's correlation of scores and grades of each list ``[L]``; 0 where all scores are equal."""
        own = -self.mean_of_ties(self.place)
        by_grade = RankedLists(self.grades, self.grades, self.lists, self.codes)
        order = np.lexsort((-self.grades, self.lists))
        resorted = RankedLists(self.grades[order], self.grades[order], self.lists, self.codes)
        theirs = np.empty(len(order))
        theirs[order] = -resorted.mean_of_ties(by_grade.place)
        a, b = (v - (self.by_list(v) / self.sizes)[self.lists] for v in (own, theirs))
        length = np.sqrt(self.by_list(a * a) * self.by_list(b * b))
        with np.errstate(all="ignore"):
            return np.where(length > 0, self.by_list(a * b) / length, 0.0)


def _mean(values: Callable[[RankedLists], np.ndarray]) -> Callable[..., float | None]:
    """The mean over the lists that count; None where there are none."""

    def of_lists(y: np.ndarray, outcome: Outcome, _: np.ndarray | None) -> float | None:
        lists = RankedLists.of(y, outcome.predicted)
        return float(values(lists).mean()) if len(lists.codes) else None

    return of_lists


_SHARE, _SIGNED = (0.0, 1.0), (-1.0, 1.0)
OF_LISTS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ndcg@10", True, "NDCG@10", _mean(lambda lists: lists.ndcg(K)), "lists", _SHARE),
        Metric("ndcg", True, "NDCG", _mean(RankedLists.ndcg), "lists", _SHARE),
        Metric("map", True, "Mean average precision", _mean(RankedLists.average_precision), "lists", _SHARE),
        Metric("mrr", True, "Mean reciprocal rank", _mean(RankedLists.reciprocal_rank), "lists", _SHARE),
        Metric("kendall", True, "Kendall's tau", _mean(RankedLists.kendall), "lists", _SIGNED),
        Metric("spearman", True, "Spearman's correlation", _mean(RankedLists.spearman), "lists", _SIGNED),
    )
}
"""The metrics of lists, the default first."""


def plain_word(spec: str) -> str:
    """``ndcg@5`` and the like as the default's word; others as they are.

    >>> plain_word("NDCG@5"), plain_word("ndcg@0")
    ('ndcg@10', 'ndcg@0')
    """
    return "ndcg@10" if _AT.fullmatch(spec.strip().lower()) else spec


def list_metric(spec: str) -> Metric | None:
    """NDCG@k by its word; None for another word.

    >>> list_metric("ndcg@3").label
    'NDCG@3'
    """
    match = _AT.fullmatch(spec.strip().lower())
    if match is None or int(match[1]) == K:
        return None
    k = int(match[1])
    return Metric(f"ndcg@{k}", True, f"NDCG@{k}", _mean(lambda lists: lists.ndcg(k)), "lists", _SHARE)


def own_list_metric(spec: str, scorer: Any) -> Metric:
    """A user's ``function(grades, scores) -> float`` of one list; its mean over the lists that count."""
    if not callable(scorer):
        raise InputError(f"metric {spec!r}: expected a function of (grades, scores), got {type(scorer).__name__}")

    def of_lists(y: np.ndarray, outcome: Outcome, _: np.ndarray | None) -> float | None:
        lists = RankedLists.of(y, outcome.predicted)
        ends = np.cumsum(lists.sizes)[:-1]
        try:
            values = [
                float(scorer(grades, scores))
                for grades, scores in zip(np.split(lists.grades, ends), np.split(lists.scores, ends))
            ]
        except Exception as error:
            raise InputError(f"metric {spec!r} failed: {error}") from error
        return float(np.mean(values)) if len(lists.codes) else None

    return Metric(spec, bool(getattr(scorer, "greater_is_better", True)), spec.partition(":")[2], of_lists, "lists")
