"""From typed columns to numbers of a network: medians and scales, calendar parts, one-hot codes, hashed letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.lazy import late
from .raw import Column, Text
from .types import MOST_CATEGORIES

pd = late("pandas")

MOST_ONE_HOT = 256
"""Categories beyond this many share one place, where new ones go too."""

WIDTH, NGRAMS = MOST_CATEGORIES, (2, 4)
"""Into how many columns text is hashed, and how long the pieces of words are."""

PARTS = ("days", "year", "month", "day", "weekday", "hour")


def calendar_part(values: np.ndarray, unit: str) -> np.ndarray:
    """One calendar unit of datetime64 ``[rows]`` as float64, NaN where missing.

    >>> calendar_part(np.array(["2024-05-06T12:00"], dtype="M8[us]"), "weekday").tolist()
    [0.0]
    """
    days = values.astype("M8[D]")
    if unit == "days":  # since 1970, with the time of day as a fraction
        numbers = values.astype(np.int64) / 86_400e6
    elif unit == "year":
        numbers = values.astype("M8[Y]").astype(np.int64) + 1970.0
    elif unit == "month":
        numbers = values.astype("M8[M]").astype(np.int64) % 12 + 1.0
    elif unit == "day":
        numbers = (days - values.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1.0
    elif unit == "weekday":
        numbers = (days.astype(np.int64) + 3.0) % 7  # 1970 began on a Thursday; Monday is 0
    else:
        numbers = (values - days).astype(np.int64) // 3_600_000_000 + 0.0
    return np.where(np.isnat(values), np.nan, numbers)


@dataclass(frozen=True)
class NumberPlace:
    """A column of numbers, or one calendar part of a column of dates.

    Attributes:
        column: its name.
        part: of ``PARTS``, or None.
        median: what stands for a missing number.
        mean, scale: taken off and divided by.
        indicator: whether a further place says that the cell was missing.
    """

    column: str
    part: str | None
    median: float
    mean: float
    scale: float
    indicator: bool


def fit_numbers(
    columns: Sequence[tuple[str, str | None, np.ndarray]], weight: np.ndarray | None, standardise: bool
) -> list[NumberPlace]:
    """A place for each column of numbers: ``(name, unit, values [rows])``.

    A column whose variance is rounding error has scale 1, as in scikit-learn's ``StandardScaler``.
    """
    return [
        NumberPlace(name, unit, *_statistics(values, weight, standardise), bool(np.isnan(values).any()))
        for name, unit, values in columns
    ]


def _statistics(values: np.ndarray, weight: np.ndarray | None, standardise: bool) -> tuple[float, float, float]:
    missing = np.isnan(values)
    holes = bool(missing.any())
    median = _median(values[~missing], None if weight is None else weight[~missing])
    if not standardise:
        return median, 0.0, 1.0
    filled = np.where(missing, median, values) if holes else values
    total = float(len(filled)) if weight is None else float(weight.sum())
    mean = float(filled.mean() if weight is None else weight @ filled / total)
    away = filled - mean
    variance = float(away @ away / total if weight is None else weight @ away**2 / total)
    noise = total * np.finfo(np.float64).eps * variance + (total * mean * np.finfo(np.float64).eps) ** 2
    return median, mean, 1.0 if variance <= noise else float(np.sqrt(variance))


def _median(values: np.ndarray, weight: np.ndarray | None) -> float:
    """The median, 0 of nothing; with weights that of rows repeated so often."""
    if not len(values):
        return 0.0
    if weight is None:
        return float(np.median(values))
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    half = total[-1] / 2
    low = int(np.searchsorted(total, half, side="left"))
    high = min(int(np.searchsorted(total, half, side="right")), len(order) - 1)
    return float((values[order[low]] + values[order[high]]) / 2)


@dataclass(frozen=True)
class CategoryPlaces:
    """A column of categories, one-hot.

    Attributes:
        column: its name.
        categories: words, and None where a missing cell is a category; others have no place: all are 0.
        other: whether a last place stands for every other word.
    """

    column: str
    categories: tuple[str | None, ...]
    other: bool = False

    @property
    def width(self) -> int:
        return len(self.categories) + self.other

    @property
    def names(self) -> list[str]:
        said = [f"{self.column} is missing" if c is None else f"{self.column} = {c}" for c in self.categories]
        return [*said, f"{self.column} is another"] if self.other else said

    def write(self, text: Text, out: np.ndarray) -> None:
        """Set the places of each row in zeros ``[rows, width]``."""
        known = [c for c in self.categories if c is not None]
        places = pd.Index(known, dtype=object).get_indexer(pd.Index(text.words.to_pylist(), dtype=object))
        if self.other:
            places = np.where(places < 0, len(self.categories), places)
        gone = self.categories.index(None) if None in self.categories else -1
        codes = np.append(places, gone)[text.codes]
        rows = np.flatnonzero(codes >= 0)
        out[rows, codes[rows]] = 1.0

    def strangers(self, text: Text) -> list[str]:
        """Words that have no place of their own."""
        known = {c for c in self.categories if c is not None}
        return [word for word in text.words.to_pylist() if word not in known]


def fit_categories(column: str, text: Text) -> CategoryPlaces:
    """Categories in order, missing last; of more than ``MOST_ONE_HOT`` the most frequent, and a place for the rest."""
    words, counts = text.words.to_pylist(), text.counts
    pooled = len(words) > MOST_ONE_HOT
    if pooled:
        words = [words[i] for i in np.argsort(-counts, kind="stable")[: MOST_ONE_HOT - 1]]
    categories: list[str | None] = sorted(words)
    if text.missing.any():
        categories.append(None)
    return CategoryPlaces(column, tuple(categories), pooled)


@dataclass(frozen=True)
class TextPlaces:
    """A column of text: its pieces of ``ngrams`` letters, hashed into ``width`` columns of mean square 1.

    Attributes:
        column: its name.
        width: of the hash.
        ngrams: shortest and longest piece; pieces stay within words.
        indicator: whether a further place says that the cell was missing.
    """

    column: str
    width: int = WIDTH
    ngrams: tuple[int, int] = NGRAMS
    indicator: bool = False

    @property
    def names(self) -> list[str]:
        said = [f"{self.column} #{i + 1}" for i in range(self.width)]
        return [*said, f"{self.column} is missing"] if self.indicator else said

    def write(self, text: Text, out: np.ndarray) -> None:
        """Fill ``[rows, width (+ 1)]``; missing text is zeros."""
        from sklearn.feature_extraction.text import HashingVectorizer  # slow to import

        hashed = HashingVectorizer(analyzer="char_wb", ngram_range=self.ngrams, n_features=self.width)
        words, codes = (text.cells.to_pylist(), None) if text.many else (text.words.to_pylist(), text.codes)
        filled = ["" if w is None else w for w in words]
        matrix = hashed.transform(filled).toarray() * np.sqrt(self.width) if filled else np.zeros((0, self.width))
        if codes is not None:
            matrix = np.concatenate([matrix, np.zeros((1, self.width))])[codes]
        out[:, : self.width] = matrix
        if self.indicator:
            out[:, self.width] = text.missing


def date_parts(values: np.ndarray) -> list[str]:
    """The calendar parts that differ among dates; the days since 1970 always."""
    known = values[~np.isnat(values)]
    differing = [unit for unit in PARTS[1:] if len(known) and np.ptp(calendar_part(known, unit)) > 0]
    return ["days", *differing]


def numbers_of(values: Column, unit: str | None) -> np.ndarray:
    """A column of numbers as it is, one of dates as one unit."""
    assert isinstance(values, np.ndarray)
    return values if unit is None else calendar_part(values, unit)
