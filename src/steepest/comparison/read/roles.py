"""Columns with a part other than a feature: groups, times, weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from .dates import both_readings, read_dates
from .numbers import read_numbers
from .raw import Column, Text
from .task import check_present
from .types import exact_integers, plain_integers
from .wording import show

pd = late("pandas")

Warn = Callable[[str], None]


def read_groups(column: Column, name: str, comma: str, dayfirst: bool | None, warn: Warn) -> np.ndarray:
    """``[rows]`` int64 codes, equal where the cells (numbers, exact to the last digit, or text) are."""
    check_present(column, f"the group {show(name)}", "every row needs one")
    column = _exact(column, comma)
    codes = column.codes if isinstance(column, Text) else pd.factorize(column)[0]
    return np.asarray(codes, dtype=np.int64)


def read_times(column: Column, name: str, comma: str, dayfirst: bool | None, warn: Warn) -> np.ndarray:
    """``[rows]`` float64 ranks 0, 1, 2 ... of numbers or dates in time order, equal where the times are.

    Raises:
        InputError: for missing cells, and words that are no date.
    """
    check_present(column, f"the time {show(name)}", "every row needs one")
    column = _exact(column, comma)
    if isinstance(column, Text):
        column = _integers_of_any_size(column) if plain_integers(column) else _dates(column, name, dayfirst, warn)
    return np.asarray(pd.factorize(column, sort=True)[0], dtype=np.float64)


def read_weights(column: Column, name: str, comma: str, dayfirst: bool | None, warn: Warn) -> np.ndarray:
    """``[rows]`` float64, finite, none negative, not all zero."""
    what = f"the weight {show(name)}"
    check_present(column, what, "every row needs one")
    if isinstance(column, Text):
        numbers = read_numbers(column, comma)
        bad = [*numbers.words, *numbers.missing]
        if bad:
            row = min(column.first(word) for word in bad)
            raise InputError(f"{what} has {show(column.cells[row - 1].as_py())} in row {row}: expected numbers")
        column = numbers.values
    if column.dtype.kind == "M":
        raise InputError(f"{what} has dates: expected numbers")
    values = column.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if wrong.size:
        raise InputError(f"{what} is {values[wrong[0]]:g} in row {wrong[0] + 1}: expected finite numbers >= 0")
    if not values.any():
        raise InputError(f"{what} is 0 in every row: expected some above 0")
    return values


def _exact(column: Column, comma: str) -> Column:
    """Numbers as numbers, integers exact; words as they are."""
    if not isinstance(column, Text) or column.declared:
        return column
    if plain_integers(column):
        return exact_integers(column)
    numbers = read_numbers(column, comma)
    return numbers.values if numbers.cells and not numbers.others and not numbers.missing else column


def _integers_of_any_size(text: Text) -> np.ndarray:
    order = np.array([int(word) for word in text.words.to_pylist()], dtype=object)
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[sorted(range(len(order)), key=order.__getitem__)] = np.arange(len(order))
    return ranks[text.codes]


def _dates(text: Text, name: str, dayfirst: bool | None, warn: Warn) -> np.ndarray:
    dates = read_dates(text, dayfirst)
    if dates.others:
        row = min(text.first(word) for word in dates.words)
        raise InputError(
            f"the time {show(name)} has {show(text.cells[row - 1].as_py())} in row {row}: expected numbers or dates "
            "of one format, such as 2024-01-31"
        )
    if dates.doubt:
        warn(f"the time {show(name)}: {both_readings(dates.doubt)}; the month is taken, --dayfirst takes the day")
    return dates.values
